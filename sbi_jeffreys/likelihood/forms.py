r"""Which form the default proxy's likelihood takes: each is fitted, and held-out data choose.

How many numbers tell what :math:`\theta` does to the Gaussians of a
:class:`~sbi_jeffreys.likelihood.energy.LikelihoodEnergy` decides how many simulations it needs.
Where noise is added to a mean, Gaussians that move as one are better by nats with few; where it is
not, they never get there. A step of a likelihood alone takes a tenth of a joint one, so all forms
are fitted for a few hundred.

A form whose Gaussians move as one also starts the joint training where its fit has ended. The one
whose Gaussians each move on their own starts it anew: of few simulations it is sure of too much,
and a flow that meets it at once follows.
"""

from collections.abc import Callable

import torch

from ..estimator import ROWS_FOR_SCALE, JeffreysEstimator
from ..proxy import proxy_nn
from .energy import LikelihoodEnergy
from .fit import LikelihoodFit, Rows
from .row_losses import surest

__all__ = ["ROWS_TO_FIT", "ROWS_TO_JUDGE", "fittest", "take_fittest_form"]

ROWS_TO_FIT, ROWS_TO_JUDGE = 5000, 2000
"""Rows to fit and to judge by, at most."""


def take_fittest_form(estimator: JeffreysEstimator, rows: Rows, held_out: Rows) -> None:
    """Give the proxy of an estimator, on the CPU, the form that held-out rows prefer.

    Args:
        estimator: Its proxy is a likelihood that has not been trained.
        rows: Parameters (n, d) and data (n, *event) to fit.
        held_out: Such to judge by.
    """
    proxy = estimator.proxy
    assert proxy is not None
    theta, x = (each[:ROWS_FOR_SCALE] for each in rows)

    def build(common: int) -> LikelihoodEnergy:
        network = estimator.new_network(theta, x, proxy.base, proxy_nn(common=common))
        assert isinstance(network, LikelihoodEnergy)
        return network

    estimator.eval()
    with torch.no_grad():
        embedded, judges = [(t, estimator.embed(x)) for t, x in (rows, held_out)]
    proxy.network = fittest(build, embedded, judges)


def fittest(
    build: Callable[[int], LikelihoodEnergy], rows: Rows, held_out: Rows
) -> LikelihoodEnergy:
    """Return the likelihood of the form that held-out rows are surest of, ready to be trained.

    Surest that it is better than the first, whose Gaussians each move on their own: with ten rows
    another may seem so that is not, and it would start the joint training.

    Args:
        build: Builds a likelihood of a form.
        rows: What to fit.
        held_out: What to judge by.
    """
    first = build(0)
    # Without correlations the last two forms are one.
    forms = range(1, 4 if first.sizes[2] else 3)
    fits = [LikelihoodFit(network, rows, held_out) for network in (first, *map(build, forms))]
    for fit in fits:
        fit.run()
    # Starts of several forms differ by chance: one that has learnt nothing is none to choose.
    fits = [fit for fit in fits if fit.network is first or fit.has_learnt]
    return fits[surest(torch.stack([fit.losses for fit in fits]))].network_to_train()
