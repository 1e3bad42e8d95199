r"""Monotonic rational-quadratic splines, evaluated with few operations.

This is the spline of zuko's neural spline flow, :class:`zuko.transforms.MonotonicRQSTransform`:
the same parameters, the same bins, the same function, so that the weights of the one fit the
other. It is evaluated by a few operations of torch (:mod:`sbi_jeffreys.layers.spline_operations`),
or, on a GPU, by kernels of its own (:mod:`sbi_jeffreys.kernels.splines`).

In units of the domain, :math:`[0, 1]`: in the bin :math:`[x_0, x_0 + w]` with image
:math:`[y_0, y_0 + h]`, slopes :math:`d_0, d_1` at its ends, :math:`s = h / w` and
:math:`z = (x - x_0) / w`, :math:`\bar z = 1 - z`:

.. math::
    y = y_0 + h \frac{n}{b}, \qquad
    \frac{\partial y}{\partial x} = \frac{s^2 a}{b^2}

.. math::
    n = z (s z + d_0 \bar z), \qquad
    b = s + (d_0 + d_1 - 2 s) z \bar z, \qquad
    a = d_1 z + d_0 \bar z + s - b

References:
    Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032, equations 4 to 8
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.transforms import MonotonicRQSTransform

from ..utils.transforms import within_torch_func
from . import spline_operations
from .usable import usable

__all__ = ["RationalQuadraticSpline", "spline", "spline_inverse", "spline_inverse_and_slope"]


class RationalQuadraticSpline(Transform):
    r"""Monotonic rational-quadratic spline on :math:`[-B, B]`, the identity outside.

    Args:
        parameters: Unconstrained bin widths, bin heights and slopes at the inner knots, one after
            the other, shape :math:`(*, 3 K - 1)` for :math:`K` bins.
        bound: Bound :math:`B` of domain and codomain.
        slope: Smallest slope, as in zuko.

    Example:
        >>> spline = RationalQuadraticSpline(torch.randn(3, 23))
        >>> x = torch.tensor([-7.0, 0.3, 1.2])
        >>> torch.allclose(spline.inv(spline(x)), x, atol=1e-4)
        True
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(
        self, parameters: Tensor, bound: float = 5.0, slope: float = 1e-3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.parameters = parameters
        self.bound = bound
        self.slope = slope

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bins={(self.parameters.shape[-1] + 1) // 3})"

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(y.shape, self.parameters.shape[:-1])
        rows, phi = self._rows(y, shape)
        return spline_inverse(rows, phi, self.bound, self.slope).reshape(shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the slope at x, of the shape of x."""
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of x and the logarithm of the slope there, both of the shape of x."""
        shape = torch.broadcast_shapes(x.shape, self.parameters.shape[:-1])
        y, log_slope = spline(*self._rows(x, shape), self.bound, self.slope)
        return y.reshape(shape), log_slope.reshape(shape)

    def _rows(self, x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return entries (1, N) and their parameters (1, 3 K - 1, N)."""
        num, sizes = self.parameters.shape[-1], (shape.numel(),)
        phi = self.parameters.expand(*shape, -1).reshape(*sizes, num)
        return x.expand(shape).reshape(1, *sizes), phi.mT.unsqueeze(0)


def spline(
    x: Tensor, phi: Tensor, bound: float = 5.0, slope: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Return the image of x and the logarithm of the slope there.

    Args:
        x: Entries, shape (d, N).
        phi: Unconstrained parameters as in :class:`RationalQuadraticSpline`, shape (d, 3 K - 1, N).
        bound: Bound of domain and codomain.
        slope: Smallest slope.

    Returns:
        Both of shape (d, N).
    """
    if within_torch_func():
        return _by_zuko(x, phi, bound, slope)
    return _Spline.apply(x, phi, bound, slope)


def spline_inverse(y: Tensor, phi: Tensor, bound: float = 5.0, slope: float = 1e-3) -> Tensor:
    """Return the entries whose image is y.

    Args:
        y: Shape (d, *rows).
        phi: Shape (d, 3 K - 1, *rows); where an entry of rows is one here, all of y share it.
        bound: As in :func:`spline`.
        slope: As there.

    Returns:
        Shape (d, *rows).
    """
    with torch.no_grad():
        x, _ = _by(y, phi).inverse(y, phi, bound, slope, with_slope=False)
    if torch.is_grad_enabled() and (y.requires_grad or phi.requires_grad):
        # One Newton step from the solution: it adds nothing but the inverse's first derivatives.
        rows = y.shape[1:].numel()
        flat = phi.expand(*phi.shape[:2], *y.shape[1:]).reshape(*phi.shape[:2], rows)
        image, log_slope = spline(x.reshape(len(x), rows), flat, bound, slope)
        correction = (y - image.view_as(y)) / log_slope.detach().exp().view_as(y)
        x = torch.where(y.abs() < bound, x + correction - correction.detach(), y)
    return x


@torch.no_grad()
def spline_inverse_and_slope(
    y: Tensor, phi: Tensor, bound: float = 5.0, slope: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Return the entries whose image is y, and the logarithm of the spline's slope there.

    Args:
        y: As in :func:`spline_inverse`.
        phi: As there.
        bound: As there.
        slope: As there.

    Returns:
        Both of shape (d, *rows), without gradients.
    """
    return _by(y, phi).inverse(y, phi, bound, slope, with_slope=True)


def _by(x: Tensor, phi: Tensor) -> ModuleType:
    """Return what evaluates a spline of these parameters at these entries."""
    if not usable(x, phi):
        return spline_operations
    from ..kernels import splines

    return splines


class _Spline(torch.autograd.Function):
    """Image and log slope, with the gradient of both written out."""

    @staticmethod
    def forward(ctx, x: Tensor, phi: Tensor, bound: float, slope: float):
        ctx.by, ctx.options = _by(x, phi), (bound, slope)
        y, log_slope, *kept = ctx.by.image(x, phi, bound, slope)
        ctx.save_for_backward(x, phi, *kept)
        return y, log_slope

    @staticmethod
    def backward(ctx, gy: Tensor, gl: Tensor):
        x, phi, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_gradient_by_zuko(x, phi, gy, gl, *ctx.options), None, None
        return *ctx.by.image_gradient(gy, gl, *ctx.options, *kept), None, None


def _by_zuko(x: Tensor, phi: Tensor, bound: float, slope: float) -> tuple[Tensor, Tensor]:
    """Return what :func:`spline` does, by operations that torch differentiates."""
    bins = (phi.shape[1] + 1) // 3
    parts = phi.movedim(1, -1).split([bins, bins, bins - 1], dim=-1)
    return MonotonicRQSTransform(*parts, bound=bound, slope=slope).call_and_ladj(x)


def _gradient_by_zuko(
    x: Tensor, phi: Tensor, gy: Tensor, gl: Tensor, bound: float, slope: float
) -> tuple[Tensor | None, ...]:
    """Return the gradient by x and phi in a form that can be differentiated again, but slower."""
    # As others than x and phi: in a flow phi depends on x, and wanted are partial derivatives.
    apart = x.view_as(x), phi.view_as(phi)
    outputs = _by_zuko(*apart, bound, slope)
    wanted = [each for each in apart if each.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, (gy, gl), create_graph=True))
    return tuple(next(found) if each.requires_grad else None for each in (x, phi))
