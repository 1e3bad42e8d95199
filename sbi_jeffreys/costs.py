r"""Prices of slack in the resilient dual problem (:mod:`sbi_jeffreys.duals`).

The price :math:`h` of giving up on a divergence decides what its multiplier can do:

- linear, :math:`h = s u`: the multiplier is :math:`s` for good. A constant in :math:`D_i` that
  nobody knows (the entropy of the data in :math:`D_1` and :math:`D_3`) then drops out of the
  problem, and the term can never die;
- quadratic, :math:`h = \alpha u^2 / 2`: :math:`\lambda` is a running mean of :math:`\alpha D`;
- Huber, quadratic up to the slope ``bound`` and linear from there: Lipschitz, so that no
  divergence, however large, can outweigh the others by more than ``bound``.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .utils.checks import check_positive

__all__ = ["Cost", "HuberCost", "LinearCost", "QuadraticCost"]


class Cost(Protocol):
    """Price :math:`h_i` of a slack: convex, increasing on u >= 0.

    ``curvature`` is the second derivative at the origin, or one where it is zero: the ascent is
    taken in its units, so that every multiplier forgets at the same rate.
    """

    @property
    def curvature(self) -> float:
        """Return h''(0), or 1 if it is zero."""

    def slack(self, multiplier: Tensor, divergence: Tensor) -> Tensor:
        """Return the u with h'(u) = multiplier; where every u has that slope, the divergence."""

    def project(self, multiplier: Tensor) -> Tensor:
        """Return the nearest slope that h can have."""


@dataclass(frozen=True)
class LinearCost:
    r"""Price :math:`h(u) = s u`: a fixed weight, for a divergence known up to a constant."""

    rate: float = 1.0
    curvature: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_positive(rate=self.rate)

    def value(self, slack: Tensor) -> Tensor:
        """Return h(u)."""
        return self.rate * slack

    def slope(self, slack: Tensor) -> Tensor:
        """Return h'(u)."""
        return torch.full_like(slack, self.rate)

    def slack(self, multiplier: Tensor, divergence: Tensor) -> Tensor:
        """Return the divergence: stationarity holds at any slack, the tightest is the best."""
        return divergence

    def project(self, multiplier: Tensor) -> Tensor:
        """Return the only slope there is."""
        return torch.full_like(multiplier, self.rate)


@dataclass(frozen=True)
class QuadraticCost:
    r"""Price :math:`h(u) = \frac{\alpha}{2} u^2`."""

    stiffness: float = 1.0

    def __post_init__(self) -> None:
        check_positive(stiffness=self.stiffness)

    @property
    def curvature(self) -> float:
        """Return h''(0)."""
        return self.stiffness

    def value(self, slack: Tensor) -> Tensor:
        """Return h(u)."""
        return 0.5 * self.stiffness * slack.square()

    def slope(self, slack: Tensor) -> Tensor:
        """Return h'(u)."""
        return self.stiffness * slack

    def slack(self, multiplier: Tensor, divergence: Tensor) -> Tensor:
        """Return the u with h'(u) = multiplier."""
        return multiplier / self.stiffness

    def project(self, multiplier: Tensor) -> Tensor:
        """Return the nearest slope of h on u >= 0."""
        return multiplier.clamp_min(0.0)


@dataclass(frozen=True)
class HuberCost:
    r"""Price :math:`\frac{\alpha}{2} u^2` up to the slope ``bound``, then linear: Lipschitz."""

    stiffness: float = 30.0
    bound: float = 4.0

    def __post_init__(self) -> None:
        check_positive(stiffness=self.stiffness, bound=self.bound)

    @property
    def curvature(self) -> float:
        """Return h''(0)."""
        return self.stiffness

    def value(self, slack: Tensor) -> Tensor:
        """Return h(u)."""
        knee = self.bound / self.stiffness
        quadratic = 0.5 * self.stiffness * slack.square()
        return torch.where(slack <= knee, quadratic, self.bound * (slack - 0.5 * knee))

    def slope(self, slack: Tensor) -> Tensor:
        """Return h'(u)."""
        return (self.stiffness * slack).clamp_max(self.bound)

    def slack(self, multiplier: Tensor, divergence: Tensor) -> Tensor:
        """Return the u with h'(u) = multiplier; at the bound, where many do, the divergence."""
        slack = multiplier / self.stiffness
        at_bound = multiplier >= self.bound
        return torch.where(at_bound, torch.maximum(slack, divergence), slack)

    def project(self, multiplier: Tensor) -> Tensor:
        """Return the nearest slope of h on u >= 0."""
        return multiplier.clamp(0.0, self.bound)
