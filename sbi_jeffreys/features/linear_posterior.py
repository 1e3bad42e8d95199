r"""The linear posterior: between the prior's bounds, of parameters or of their logarithms."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.lazy import LazyTransform

from ..walls import LazyWalls, support_bounds
from .regression import MOST_FEATURES, LinearRegression, linear_entropy
from .scales import spread

__all__ = ["LinearPosterior", "as_logarithms", "over_decades", "to_standard_space"]

# Thickness of the walls in standard deviations of theta: thin, so that the inside stays as it is.
# Thinner and thicker ones by a factor of two or so made no difference in trials.
_THICKNESS = 0.2
# The same, relative to the largest parameter, where it is to be a logarithm: within a wall this
# thick it is one, to 5 percent of its slope.
_THICK = 10.0
# Upper bound relative to a positive lower one from which on it may be one: thin walls do as well
# over fewer decades.
_RANGE = 3e4
# Share of the parameters that may lie on a bound by rounding alone.
_ON_BOUNDS = 0.01
# Rows that decide whether it is, and nats by which the linear posterior must be sharper then.
_ROWS, _SHARPER = 2000, 1.0


def to_standard_space(
    theta: Tensor, context: Tensor | None, num_context: int, prior: Distribution | None
) -> tuple[LazyTransform, ...]:
    """Return the maps from theta to an unbounded space without the linear part of the posterior.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c), or None where the embedding is still to be learnt.
        num_context: Number c of embedded features.
        prior: Prior whose bounds become soft walls, or None.
    """
    low, high = support_bounds(prior, theta.shape[-1])
    if not bool((low.isfinite() | high.isfinite()).any()):
        return (LinearRegression(theta, context, num_context),)
    std = spread(theta)
    over_many_decades = (low > 0) & (high > _RANGE * low) & high.isfinite()
    logarithms = ((low == 0) & ~high.isfinite()) | over_many_decades
    if bool(logarithms.any()):
        logarithms = over_decades(theta, context, logarithms)
    thickness = torch.where(logarithms, _THICK * theta.amax(dim=0), _THICKNESS * std)
    # Zero has no logarithm: the smallest positive number is the bound.
    low = torch.where(logarithms & (low == 0), torch.finfo(theta.dtype).tiny, low)
    # A grid that ends at the bounds would be a spike of density there: the walls stand back.
    often = _ON_BOUNDS * len(theta)
    at_low = ((theta == low).sum(dim=0) > often) & ~logarithms
    at_high = ((theta == high).sum(dim=0) > often) & ~logarithms
    low = torch.where(at_low, low - thickness, low)
    high = torch.where(at_high, high + thickness, high)
    # Simulations outside of the prior are the user's decision: the walls stand behind them.
    lowest, highest = theta.amin(dim=0), theta.amax(dim=0)
    low = torch.where(lowest < low, lowest - 1e-3 * std, low)
    high = torch.where(highest > high, highest + 1e-3 * std, high)
    walls = LazyWalls(low, high, thickness)
    return walls, LinearRegression(walls()(theta), context, num_context)


def over_decades(theta: Tensor, context: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """Return which parameters are better seen as logarithms, shape (d,): all positive ones or none.

    Rates and scales meet in products and ratios. All of them are, if the linear posterior of the
    logarithms is sharper by a nat than that of the parameters, the Jacobian included.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c); None, and then it is none of them, where the embedding
            is still to be learnt.
        allowed: Which may be, shape (d,); by default all.
    """
    positive = (theta > 0).all(dim=0)
    if allowed is not None:
        positive &= allowed.to(positive.device)
    none = torch.zeros_like(positive)
    if context is None or not 0 < context.shape[1] <= MOST_FEATURES or not bool(positive.any()):
        return none
    theta, context = theta[:_ROWS], context[:_ROWS]
    logs = as_logarithms(theta, positive)
    sharper = linear_entropy(theta, context) - linear_entropy(logs, context)
    # An entropy of logarithms is one of the parameters less the mean of their sum.
    return positive if sharper - logs[:, positive].sum(dim=1).mean() > _SHARPER else none


def as_logarithms(theta: Tensor, which: Tensor) -> Tensor:
    """Return parameters (n, d), those among them that are positive and meant (d,) as logarithms."""
    return torch.where(which, theta.clamp_min(torch.finfo(theta.dtype).tiny).log(), theta)


class LinearPosterior(nn.Module):
    r"""The density whose whitened residuals are standard normal: normalised, never trained.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c), or None where the embedding is still to be learnt.
        num_context: Number c of embedded features.
        prior: Prior whose bounds it respects, or None.
    """

    def __init__(
        self, theta: Tensor, context: Tensor | None, num_context: int, prior: Distribution | None
    ) -> None:
        super().__init__()
        *walls, regression = to_standard_space(theta, context, num_context, prior)
        self.walls = nn.ModuleList(walls)
        self.regression = regression

    def log_prob(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the log density, minus infinity outside of the bounds.

        Args:
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c).

        Returns:
            Nats, shape (S, B).
        """
        log_slope = theta.new_zeros(())
        for walls in self.walls:
            theta, slopes = walls().call_and_ladj(theta)
            log_slope = slopes.sum(dim=-1)
        y, log_det = self.regression(context).call_and_ladj(theta)
        normal = -0.5 * (y.square().sum(dim=-1) + y.shape[-1] * math.log(2 * math.pi))
        return normal + log_det + log_slope
