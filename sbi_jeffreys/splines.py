r"""Monotonic rational-quadratic splines, evaluated with few large operations.

This is the spline of zuko's neural spline flow, :class:`zuko.transforms.MonotonicRQSTransform`:
the same parameters, the same bins, the same function, so that the weights of the one fit the
other. At the sizes of simulation-based inference (hundreds of rows) the cost is the number of
operations dispatched, not their arithmetic. Here the bin is looked up once, everything after the
look-up works on one scalar per entry, and the gradient is written out by hand.

In the bin :math:`[x_0, x_0 + \Delta x]` with image :math:`[y_0, y_0 + \Delta y]`, slopes
:math:`d_0, d_1` at its ends, :math:`z = (x - x_0) / \Delta x`, :math:`s = \Delta y / \Delta x`:

.. math::
    y = y_0 + \Delta y \frac{n}{b}, \qquad
    \frac{\partial y}{\partial x} = \frac{s^2 a}{b^2}

.. math::
    n = s z^2 + d_0 z (1 - z), \qquad
    b = s + (d_0 + d_1 - 2 s) z (1 - z), \qquad
    a = d_1 z^2 + 2 s z (1 - z) + d_0 (1 - z)^2

References:
    Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032, equations 4 to 8
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["RationalQuadraticSpline"]


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
        return _inverse(y, self.parameters, self.bound, self.slope)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the slope at x, of the shape of x."""
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of x and the logarithm of the slope there, both of the shape of x."""
        return _Forward.apply(x, self.parameters, self.bound, self.slope)


def _constrain(phi: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Squash the parameters to within the bounds that `slope` sets; also give the shrinkage."""
    K = (phi.shape[-1] + 1) // 3
    c = torch.full((3 * K - 1,), 1.0 / abs(math.log(slope)), dtype=phi.dtype, device=phi.device)
    c[: 2 * K] *= 2
    shrinkage = (phi * c).abs_().add_(1).reciprocal_()
    return phi * shrinkage, shrinkage


def _bin(t: Tensor, phi: Tensor, bound: float, axis: int) -> tuple[Tensor, ...]:
    """Look up the bin of t among the widths (axis 0) or heights (axis 1) of squashed parameters.

    Positions are in units of the domain, [0, 1]. Returns the bin sizes (*, 2, K), the bin's
    index k (*, 1), its size and its upper end along both axes (*, 2) and the two slopes (*, 2).
    """
    K = (phi.shape[-1] + 1) // 3
    sizes = phi[..., : 2 * K].unflatten(-1, (2, K)).softmax(dim=-1)
    ends = sizes.cumsum(dim=-1)
    u = t.unsqueeze(-1).add(bound).div_(2 * bound)
    k = (ends[..., axis, :-1] < u).sum(dim=-1, keepdim=True)
    index = k.unsqueeze(-2).expand(*k.shape[:-1], 2, 1)
    size = sizes.gather(-1, index).squeeze(-1)
    end = ends.gather(-1, index).squeeze(-1)
    # The outermost slopes are one, so that the identity outside joins smoothly.
    knots = F.pad(phi[..., 2 * K :], (1, 1))
    slopes = knots.gather(-1, torch.cat((k, k + 1), dim=-1)).exp_()
    return sizes, k, size, end, slopes


def _inverse(y: Tensor, phi: Tensor, bound: float, slope: float) -> Tensor:
    shape = torch.broadcast_shapes(y.shape, phi.shape[:-1])
    y, phi = y.expand(shape), phi.expand(*shape, -1)
    _, _, size, end, slopes = _bin(y, _constrain(phi, slope)[0], bound, axis=1)
    dx, dy = size.mul(2 * bound).unbind(-1)
    x1, y1 = end.mul(2 * bound).sub(bound).unbind(-1)
    d0, d1 = slopes.unbind(-1)
    inside = y.abs() < bound
    s = dy / dx
    t = torch.where(inside, y - y1 + dy, torch.zeros_like(y))
    m = d0 + d1 - 2 * s
    tm = t * m
    a = dy * (s - d0) + tm
    b = dy * d0 - tm
    c = -s * t
    z = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    return torch.where(inside, x1 - dx + z * dx, y)


class _Forward(torch.autograd.Function):
    """Image and log slope, with the gradient of both written out."""

    @staticmethod
    def forward(ctx, x: Tensor, phi: Tensor, bound: float, slope: float):  # type: ignore[override]
        ctx.shapes = x.shape, phi.shape
        shape = torch.broadcast_shapes(x.shape, phi.shape[:-1])
        x, phi = x.expand(shape), phi.expand(*shape, -1)
        phi, shrinkage = _constrain(phi, slope)
        sizes, k, size, end, slopes = _bin(x, phi, bound, axis=0)
        dx, dy = size.mul(2 * bound).unbind(-1)
        x1, y1 = end.mul(2 * bound).sub_(bound).unbind(-1)
        d0, d1 = slopes.unbind(-1)
        inside = x.abs() < bound

        s = dy / dx
        # Outside, x itself is returned; the clamp only keeps the discarded values finite.
        z = (x - x1).div_(dx).add_(1).clamp_(0.0, 1.0)
        w = z - z * z
        sw = s * w
        b = s + (d0 + d1 - 2 * s) * w
        q = (s * z * z + d0 * w) / b
        a = d1 * (z - w) + 2 * sw + d0 * (1 - z - w)
        sb = s / b
        y = torch.where(inside, y1 + dy * (q - 1), x)
        ladj = (sb * sb * a).log_() * inside
        ctx.bound = bound
        ctx.save_for_backward(inside, shrinkage, sizes, k, slopes, z, w, s, b, q, a, dx, dy)
        return y, ladj

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy: Tensor, gl: Tensor):  # type: ignore[override]
        inside, shrinkage, sizes, k, slopes, z, w, s, b, q, a, dx, dy = ctx.saved_tensors
        d0, d1 = slopes.unbind(-1)
        gx_outside = gy.masked_fill(inside, 0.0)
        gy, gl = gy * inside, gl * inside
        # Derivatives with respect to n, b and a, then to z, s, d0 and d1 inside them.
        gn = gy * dy / b
        gb = -gn * q - 2 * gl / b
        ga = gl / a
        zz, cc = z - w, 1 - z - w
        m = 1 - 2 * z
        gz = gn * (2 * s * z + d0 * m) + gb * (d0 + d1 - 2 * s) * m
        gz += 2 * ga * (d1 * z + s * m - d0 * (1 - z))
        gs = gn * zz + gb * (1 - 2 * w) + 2 * (ga * w + gl / s)
        gnb = (gn + gb) * w
        gslopes = torch.stack(((gnb + ga * cc) * d0, (gb * w + ga * zz) * d1), dim=-1)
        gx = gz / dx
        gs_dx = gs / dx
        # x0 is the sum of the bins before k, so its derivative reaches all of them.
        gstart = torch.stack((-gx, gy), dim=-1)
        gsize = torch.stack((-gx * z - gs_dx * s, gy * q + gs_dx), dim=-1)

        K = sizes.shape[-1]
        before = torch.arange(K, device=k.device) < k
        gsizes = gstart.unsqueeze(-1) * before.unsqueeze(-2)
        index = k.unsqueeze(-2).expand(*k.shape[:-1], 2, 1)
        gsizes.scatter_(-1, index, gsize.unsqueeze(-1)).mul_(2 * ctx.bound)
        gsizes = sizes * (gsizes - (gsizes * sizes).sum(dim=-1, keepdim=True))
        gknots = gslopes.new_zeros(*k.shape[:-1], K + 1)
        gknots.scatter_(-1, torch.cat((k, k + 1), dim=-1), gslopes)
        gphi = torch.cat((gsizes.flatten(-2), gknots[..., 1:-1]), dim=-1)
        gphi.mul_(shrinkage).mul_(shrinkage)
        x_shape, phi_shape = ctx.shapes
        return (gx + gx_outside).sum_to_size(x_shape), gphi.sum_to_size(phi_shape), None, None
