r"""Soft walls: a bijection from the prior's support to the whole space, the identity well inside.

A flow on z-scored parameters leaks out of the prior; one on logit-transformed parameters cannot,
but it bends the inside of the support as well, where sharp posteriors then lose. This map leaves
the inside alone and stretches a layer of thickness :math:`\varepsilon` at each bound to infinity:

.. math::
    u = \theta + \varepsilon \log(1 - e^{-(\theta - a) / \varepsilon})
               - \varepsilon \log(1 - e^{-(b - \theta) / \varepsilon})

.. math::
    \frac{\mathrm{d} u}{\mathrm{d} \theta}
    = 1 + \frac{1}{e^{(\theta - a) / \varepsilon} - 1}
        + \frac{1}{e^{(b - \theta) / \varepsilon} - 1}

Its inverse is a sigmoid with a straight middle, the difference of two softplus:

.. math::
    \theta = a + \varepsilon \zeta\big((u - a) / \varepsilon\big)
               - \varepsilon \zeta\big((u - b) / \varepsilon\big),
    \qquad \zeta(t) = \log(1 + e^t)

Either bound may be infinite; then its terms are absent. Well within a wall that is thicker than
all parameters, u is :math:`\varepsilon \log((\theta - a) / \varepsilon)`: a logarithm.
"""

import torch
import torch.nn.functional as F
from sbi.utils import MultipleIndependent, RestrictedPrior
from sbi.utils.user_input_checks_utils import OneDimPriorWrapper
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    IndependentTransform,
    Transform,
    TransformedDistribution,
    constraints,
)

__all__ = ["SoftWalls", "support_bounds"]

# Thickness of a wall in units of its lower bound beyond which parameters of many decades lie in it.
_DEEP = 1e5


class SoftWalls(Transform):
    r"""Map :math:`(a, b)^d` to :math:`\mathbb{R}^d`, elementwise.

    Args:
        low: Lower bounds a, shape (d,), minus infinity where there is none.
        high: Upper bounds b, shape (d,), infinity where there is none.
        thickness: Thickness of the stretched layer, in the unit of each parameter, shape (d,).

    Example:
        >>> walls = SoftWalls(torch.zeros(1), torch.ones(1), torch.full((1,), 0.05))
        >>> walls(torch.tensor([0.5]))
        tensor([0.5000])
        >>> walls.inv(torch.tensor([3.0])) < 1
        tensor([True])
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, low: Tensor, high: Tensor, thickness: Tensor, **kwargs: int) -> None:
        super().__init__(**kwargs)
        self.low, self.high, self.thickness = low, high, thickness

    def _call(self, theta: Tensor) -> Tensor:
        return self.call_and_ladj(theta)[0]

    def call_and_ladj(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and log du/dtheta, both of the shape of theta; minus infinity outside."""
        # Depths below both bounds, in thicknesses. An infinite bound is infinitely far away and
        # drops out by itself. Values nearer than float32 can resolve, far nearer to zero than to
        # any other number, are held at that distance.
        nearest = torch.where(self.low == 0, 1e-12, 1e-6)
        # Within a wall so thick lie many decades, down to what float32 resolves next to the bound.
        deep = (self.thickness > _DEEP * self.low.abs()) & (self.low != 0)
        resolved = torch.finfo(theta.dtype).eps * self.low.abs() / self.thickness
        nearest = torch.where(deep, resolved.clamp_min(1e-30), nearest)
        below = torch.maximum((theta - self.low) / self.thickness, nearest)
        above = ((self.high - theta) / self.thickness).clamp_min(1e-6)
        lower, upper = torch.expm1(-below).neg(), torch.expm1(-above).neg()
        u = theta + self.thickness * (lower / upper).log()
        slope = (1 / lower + 1 / upper - 1).log()
        inside = (theta >= self.low) & (theta <= self.high)
        return u, torch.where(inside, slope, torch.full_like(slope, -torch.inf))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log du/dtheta, of the shape of theta."""
        return self.call_and_ladj(x)[1]

    def _inverse(self, u: Tensor) -> Tensor:
        t = self.thickness
        has_low, has_high = self.low.isfinite(), self.high.isfinite()
        # Numbers in place of infinite bounds keep the branches that are not taken finite.
        a = torch.where(has_low, self.low, torch.zeros_like(t))
        b = torch.where(has_high, self.high, torch.zeros_like(t))
        from_low, from_high = (u - a) / t, (u - b) / t
        both = a + t * (F.softplus(from_low) - F.softplus(from_high))
        theta = torch.where(has_low & has_high, both, u)
        theta = torch.where(has_low & ~has_high, a + t * F.softplus(from_low), theta)
        theta = torch.where(has_high & ~has_low, b - t * F.softplus(-from_high), theta)
        # Rounding may land on a bound or past it: hold the draw just inside.
        return theta.clamp(
            torch.nextafter(self.low, torch.full_like(self.low, torch.inf)),
            torch.nextafter(self.high, torch.full_like(self.high, -torch.inf)),
        )


def support_bounds(prior: Distribution | None, dim: int) -> tuple[Tensor, Tensor]:
    """Return the bounds of a prior's support, elementwise.

    A transformed distribution says where the last of its transformations ends: that a log-uniform
    one is positive, say. Its bounds are where these send the bounds of what they transform.

    Args:
        prior: Distribution over parameters, or None.
        dim: Number of parameters d.

    Returns:
        Lower and upper bounds, shape (d,), infinite where the support is not bounded or is not
        known to be (a support that is no product of intervals, say).
    """
    low, high = _bounds_of_prior(prior) if prior is not None else _bounds(constraints.real)
    try:
        return low.expand(dim).cpu().clone(), high.expand(dim).cpu().clone()
    except RuntimeError:
        return torch.full((dim,), -torch.inf), torch.full((dim,), torch.inf)


def _bounds_of_prior(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Unwrap a distribution to its bounds, of shape () or (d,)."""
    if isinstance(prior, RestrictedPrior):
        return _bounds_of_prior(prior._prior)
    if isinstance(prior, OneDimPriorWrapper):
        return _bounds_of_prior(prior.prior)
    if isinstance(prior, Independent):
        return _bounds_of_prior(prior.base_dist)
    if isinstance(prior, MultipleIndependent):
        parts = [
            [
                bound.expand(max(1, part.event_shape.numel())).cpu()
                for bound in _bounds_of_prior(part)
            ]
            for part in prior.dists
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    # Classes that derive from it have a support of their own, which may be wider: what they
    # transform may be bounded for the sake of rounding only (torch's Gumbel).
    if type(prior) is TransformedDistribution:
        low, high = _bounds_of_prior(prior.base_dist)
        for transform in prior.transforms:
            low, high = _bounds_after(transform, low, high)
        return low, high
    try:
        return _bounds(prior.support)
    except (NotImplementedError, AttributeError):
        return _bounds(constraints.real)


def _bounds_after(transform: Transform, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of what a transformation makes of numbers between these."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            low, high = _bounds_after(part, low, high)
        return low, high
    if isinstance(transform, IndependentTransform):
        return _bounds_after(transform.base_transform, low, high)
    lowest, highest = _bounds(transform.codomain)
    try:
        rises = torch.as_tensor(transform.sign) > 0
    except NotImplementedError:
        # Not monotone, or not elementwise.
        return lowest, highest
    # What has no bound ends where the transformation does.
    from_low, from_high = (
        torch.where(bound.isfinite(), transform(bound), bound * transform.sign)
        for bound in (low, high)
    )
    low = torch.where(rises, from_low, from_high)
    high = torch.where(rises, from_high, from_low)
    return torch.maximum(low, lowest), torch.minimum(high, highest)


def _bounds(support: constraints.Constraint | None) -> tuple[Tensor, Tensor]:
    """Unwrap a constraint to its bounds, of shape () or (d,)."""
    if isinstance(support, constraints.independent):
        return _bounds(support.base_constraint)
    if isinstance(support, constraints.cat):
        parts = [
            [bound.expand(length).cpu() for bound in _bounds(part)]
            for part, length in zip(support.cseq, support.lengths, strict=True)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    low = getattr(support, "lower_bound", -torch.inf)
    high = getattr(support, "upper_bound", torch.inf)
    return torch.as_tensor(low).float(), torch.as_tensor(high).float()
