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

from ..utils.row_losses import surest
from .energy import LikelihoodEnergy
from .fit import LikelihoodFit, Rows

__all__ = ["fittest"]


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
    # Starts of several forms differ by chance: skip those that have not improved.
    fits = [fit for fit in fits if fit.network is first or fit.has_learnt]
    return fits[surest(torch.stack([fit.losses for fit in fits]))].network_to_train()
