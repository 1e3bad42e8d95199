"""The form of a likelihood that is the proxy, chosen before the joint training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..estimator import ROWS_FOR_SCALE, JeffreysEstimator
from ..likelihood.base import Likelihood
from ..likelihood.discrete import DISCRETE
from ..likelihood.fit import Rows
from ..likelihood.forms import fittest
from ..proxy import proxy_nn
from .split import NO_ROWS

__all__ = ["NOT_FITTED", "ROWS_TO_FIT", "ROWS_TO_JUDGE", "Fitted", "take_fittest_form"]

ROWS_TO_FIT, ROWS_TO_JUDGE = 5000, 2000
"""Rows to fit and to judge by, at most."""


class Fitted(NamedTuple):
    """Likelihoods of all forms, on the CPU, and what they were fitted to; none where none was.

    ``rows`` are the first round and the number of the simulations, ``train`` the numbers of those
    that were not held out.
    """

    rows: tuple[int, int]
    train: Tensor
    likelihoods: Sequence[Likelihood]

    def is_of(self, rows: tuple[int, int], train: Tensor) -> bool:
        """Whether these are the simulations, in whatever order."""
        return rows == self.rows and torch.equal(train.sort().values, self.train.sort().values)


NOT_FITTED = Fitted((0, 0), NO_ROWS.train, ())


def take_fittest_form(
    estimator: JeffreysEstimator,
    rows: Rows,
    held_out: Rows,
    *,
    levels: bool = True,
    sharpness: bool = True,
) -> list[Likelihood]:
    """Give the proxy of an estimator, on the CPU, the form that held-out rows prefer.

    Args:
        estimator: Its proxy is a likelihood, which another takes the place of.
        rows: Parameters (n, d) and data (n, *event) to fit.
        held_out: Such to judge by.
        levels: Whether to try a likelihood of levels, where data come in few of these.
        sharpness: Whether units may learn how sharply they bend.

    Returns:
        The likelihoods of all forms, as they were fitted.
    """
    proxy = estimator.proxy
    assert proxy is not None

    def build(common: int) -> Likelihood:
        # Rare levels are wanted, too; for scales fewer rows will do.
        most = ROWS_TO_FIT if common == DISCRETE else ROWS_FOR_SCALE
        theta, x = (each[:most] for each in rows)
        network = estimator.new_network(theta, x, proxy.base, proxy_nn(common=common))
        assert isinstance(network, Likelihood)
        network.of_theta.sharpness.requires_grad_(sharpness)
        return network

    estimator.eval()
    with torch.no_grad():
        embedded, judges = [(t, estimator.embed(x)) for t, x in (rows, held_out)]
    proxy.network, fitted = fittest(build, embedded, judges, levels=levels)
    return fitted
