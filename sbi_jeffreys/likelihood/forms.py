r"""Which form the default proxy's likelihood takes: each is fitted, and held-out data choose.

How many numbers tell what :math:`\theta` does to the Gaussians of a
:class:`~sbi_jeffreys.likelihood.energy.LikelihoodEnergy` decides how many simulations it needs.
Where noise is added to a mean, Gaussians that move as one are better by nats with few; where it is
not, they never get there. A step of a likelihood alone takes a tenth of a joint one, so all forms
are fitted for a few hundred.

A form whose Gaussians move as one also starts the joint training where its fit has ended. The one
whose Gaussians each move on their own starts it anew: of few simulations it is sure of too much,
and a flow that meets it at once follows.

All that were fitted are of use once more after the training
(:mod:`sbi_jeffreys.likelihood.stacking`).
"""

import copy
from collections.abc import Callable

import torch

from ..utils.row_losses import surest
from .base import Likelihood
from .discrete import DISCRETE
from .energy import LikelihoodEnergy
from .fit import LikelihoodFit, Rows
from .information import information_of, is_level
from .levels import has_few_levels

__all__ = ["fittest"]


def fittest(
    build: Callable[[int], Likelihood], rows: Rows, held_out: Rows, *, levels: bool = True
) -> tuple[Likelihood, list[Likelihood]]:
    """Return the likelihood of the form that held-out rows are surest of, and all that were fitted.

    The former is ready to be trained; the latter have their best weights, the chosen form first.

    Surest that it is better than the first, whose Gaussians each move on their own: with ten rows
    another may seem so that is not, and it would start the joint training.

    Args:
        build: Builds a likelihood of a form.
        rows: What to fit.
        held_out: What to judge by.
        levels: Whether to try a likelihood of levels, where data come in few of these.
    """
    first = build(0)
    assert isinstance(first, LikelihoodEnergy)
    # Without correlations the last two forms are one.
    forms = [*range(1, 4 if first.sizes[2] else 3)]
    if levels and has_few_levels(rows[1], first.gaps):
        forms.append(DISCRETE)
    fits = [LikelihoodFit(network, rows, held_out) for network in (first, *map(build, forms))]
    for fit in fits:
        fit.run()
    # Starts of Gaussians differ by chance: skip those that have not improved.
    fits = [fit for fit in fits if fit.network is first or fit.has_learnt or _is_of_levels(fit)]
    chosen = _surest(fits)
    if _is_of_levels(fits[-1]) and not _tells_as_much(fits[-1], _surest(fits[:-1])):
        fits.pop()
        chosen = _surest(fits)
    fitted = [fit.restore_best() for fit in fits if fit is not chosen]
    # The original is the one to train: what it knows of the embedding it shares with the flow.
    fitted.insert(0, copy.deepcopy(chosen.restore_best()))
    return chosen.network_to_train(), fitted


def _is_of_levels(fit: LikelihoodFit) -> bool:
    return fit.network.common == DISCRETE


def _surest(fits: list[LikelihoodFit]) -> LikelihoodFit:
    return fits[surest(torch.stack([fit.losses for fit in fits]))]


def _tells_as_much(levels: LikelihoodFit, other: LikelihoodFit) -> bool:
    """Whether a likelihood of levels tells as much of theta at held-out rows as another does.

    It may be likelier and still know less: columns that share noise count as so many witnesses.
    """
    found = (information_of(fit.restore_best(), fit.rows, fit.held_out) for fit in (levels, other))
    return is_level(*found)
