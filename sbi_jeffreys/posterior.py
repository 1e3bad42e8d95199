r"""sbi's posterior of a density, without a search for leakage where there can be none.

``posterior.log_prob`` divides by the mass within the prior's support, which sbi estimates at each
new x from 10,000 draws. The default flow has walls at the bounds of that support, and a prior on
the whole space has no outside: there the mass is one.
"""

from typing import NamedTuple

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from torch import Tensor
from torch.distributions import Distribution, constraints

from .walls import LazyWalls, constraint_bounds

__all__ = ["NoLeakage", "is_contained", "without_leakage"]


class NoLeakage(NamedTuple):
    """Takes the place of a posterior's ``leakage_correction``: all mass is in the support.

    Of the posterior itself, and not of a class that derives from it: sbi's ensembles want members
    of one type.
    """

    condition_shape: torch.Size

    def __call__(
        self,
        x: Tensor,
        num_rejection_samples: int = 10_000,
        force_update: bool = False,
        show_progress_bars: bool = False,
        rejection_sampling_batch_size: int = 10_000,
    ) -> Tensor:
        """Return one for each of the data (B, *event), shape (B,); arguments as in sbi."""
        return torch.ones(len(reshape_to_batch_event(x, self.condition_shape)), device=x.device)


def without_leakage(posterior: DirectPosterior) -> DirectPosterior:
    """Return a posterior, changed in place where it is known to have no leakage."""
    estimator = posterior.posterior_estimator
    if is_contained(estimator, posterior.prior):
        correction = NoLeakage(estimator.condition_shape)
        posterior.leakage_correction = correction
    return posterior


def is_contained(estimator: ConditionalDensityEstimator, prior: Distribution) -> bool:
    """Whether walls, or the lack of any outside, keep a density within a prior's support."""
    try:
        support = prior.support
    except (AttributeError, NotImplementedError):
        return False
    if not _is_box(support):
        return False
    low, high = (bound.cpu() for bound in constraint_bounds(support))
    walls = next((m.args[:2] for m in estimator.modules() if isinstance(m, LazyWalls)), None)
    if walls is None:
        return bool((low == -torch.inf).all() and (high == torch.inf).all())
    least, largest = (bound.cpu() for bound in walls)
    return bool((least >= low).all() and (largest <= high).all())


def _is_box(support: constraints.Constraint | None) -> bool:
    """Whether a support is a product of intervals, and its bounds say all of it."""
    if isinstance(support, constraints.independent):
        return _is_box(support.base_constraint)
    if isinstance(support, constraints.cat):
        return all(map(_is_box, support.cseq))
    half = constraints.greater_than, constraints.greater_than_eq
    return isinstance(support, (type(constraints.real), constraints.interval, *half))
