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

from typing import Any, NamedTuple

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
from typing_extensions import Self
from zuko.lazy import UnconditionalTransform

__all__ = ["LazyWalls", "SoftWalls", "constraint_bounds", "support_bounds"]

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
    _known: "_Known | None" = None

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        thickness: Tensor,
        known: "_Known | None" = None,
        **kwargs: int,
    ) -> None:
        super().__init__(**kwargs)
        self.low, self.high, self.thickness = low, high, thickness
        self._known = known

    @property
    def known(self) -> "_Known":
        """What follows from the bounds and the thickness alone."""
        if self._known is None:
            self._known = _Known.of(self.low, self.high, self.thickness)
        return self._known

    def _call(self, theta: Tensor) -> Tensor:
        return self.call_and_ladj(theta)[0]

    def call_and_ladj(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and log du/dtheta, both of the shape of theta; the latter -inf outside."""
        # Minus the depths below both bounds, in thicknesses. An infinite bound is infinitely far
        # away and drops out by itself.
        below = torch.minimum((self.low - theta) / self.thickness, self.known.nearest)
        above = ((theta - self.high) / self.thickness).clamp_max(-1e-6)
        lower, upper = below.expm1(), above.expm1()
        u = theta + self.thickness * (lower / upper).log()
        slope = (-1.0 - (lower.reciprocal() + upper.reciprocal())).log()
        outside = (theta < self.low) | (theta > self.high)
        return u, slope.masked_fill(outside, -torch.inf)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log du/dtheta, of the shape of theta."""
        return self.call_and_ladj(x)[1]

    def _inverse(self, u: Tensor) -> Tensor:
        t, known = self.thickness, self.known
        from_low, from_high = (u - known.low) / t, (u - known.high) / t
        above_low = F.softplus(from_low)
        both = known.low + t * (above_low - F.softplus(from_high))
        theta = torch.where(known.both, both, u)
        theta = torch.where(known.low_alone, known.low + t * above_low, theta)
        theta = torch.where(known.high_alone, known.high - t * F.softplus(-from_high), theta)
        # Rounding may land on a bound or past it: hold the draw just inside.
        return theta.clamp(known.lowest, known.highest)


class _Known(NamedTuple):
    """What is known of walls before any parameter is, each (d,).

    ``nearest`` is minus the depth, in thicknesses, at which parameters nearer to low are held.
    ``low`` and ``high`` are the bounds, zero where they are infinite, which keeps the branches that
    are not taken finite; ``both``, ``low_alone`` and ``high_alone`` say which are not. ``lowest``
    and ``highest`` are the numbers next to the bounds.
    """

    nearest: Tensor
    low: Tensor
    high: Tensor
    both: Tensor
    low_alone: Tensor
    high_alone: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor, thickness: Tensor) -> "_Known":
        """Return it for bounds and a thickness as in :class:`SoftWalls`."""
        # What is nearer than numbers can resolve is held, far nearer to zero than to any other
        # number. Within a wall so thick lie many decades, down to what is resolved next to the
        # bound.
        deep = (thickness > _DEEP * low.abs()) & (low != 0)
        resolved = (torch.finfo(low.dtype).eps * low.abs() / thickness).clamp_min(1e-30)
        nearest = torch.where(deep, resolved, torch.where(low == 0, 1e-12, 1e-6).to(low))
        has_low, has_high = low.isfinite(), high.isfinite()
        infinity = torch.full_like(low, torch.inf)
        return cls(
            nearest=-nearest,
            low=low.masked_fill(~has_low, 0.0),
            high=high.masked_fill(~has_high, 0.0),
            both=has_low & has_high,
            low_alone=has_low & ~has_high,
            high_alone=has_high & ~has_low,
            lowest=torch.nextafter(low, infinity),
            highest=torch.nextafter(high, -infinity),
        )


class LazyWalls(UnconditionalTransform):
    """Soft walls as one layer of a flow, which works out once what it knows of them.

    Args:
        low: As in :class:`SoftWalls`.
        high: As there.
        thickness: As there.
    """

    def __init__(self, low: Tensor, high: Tensor, thickness: Tensor) -> None:
        super().__init__(SoftWalls, low, high, thickness, buffer=True)
        for name, value in _Known.of(low, high, thickness)._asdict().items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, c: Tensor | None = None) -> Transform:
        """Return the walls, whatever the embedded data."""
        low, high, thickness = self.args
        known = _Known(*(getattr(self, name) for name in _Known._fields))
        return SoftWalls(low, high, thickness, known)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._work_out()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self._0.dtype
        super()._apply(fn, recurse)
        if self._0.dtype != before:
            # The number next to a bound is another one.
            self._work_out()
        return self

    @torch.no_grad()
    def _work_out(self) -> None:
        for name, value in _Known.of(*self.args)._asdict().items():
            there = getattr(self, name)
            if (there.dtype, there.device) == (value.dtype, value.device):
                # Recordings read it where it is.
                there.copy_(value)
            else:
                setattr(self, name, value)


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
    low, high = (
        _bounds_of_prior(prior) if prior is not None else constraint_bounds(constraints.real)
    )
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
        return constraint_bounds(prior.support)
    except (NotImplementedError, AttributeError):
        return constraint_bounds(constraints.real)


def _bounds_after(transform: Transform, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of what a transformation makes of numbers between these."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            low, high = _bounds_after(part, low, high)
        return low, high
    if isinstance(transform, IndependentTransform):
        return _bounds_after(transform.base_transform, low, high)
    lowest, highest = constraint_bounds(transform.codomain)
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


def constraint_bounds(support: constraints.Constraint | None) -> tuple[Tensor, Tensor]:
    """Unwrap a constraint to its bounds, of shape () or (d,), infinite where it has none."""
    if isinstance(support, constraints.independent):
        return constraint_bounds(support.base_constraint)
    if isinstance(support, constraints.cat):
        parts = [
            [bound.expand(length).cpu() for bound in constraint_bounds(part)]
            for part, length in zip(support.cseq, support.lengths, strict=True)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    low = getattr(support, "lower_bound", -torch.inf)
    high = getattr(support, "upper_bound", torch.inf)
    return torch.as_tensor(low).float(), torch.as_tensor(high).float()
