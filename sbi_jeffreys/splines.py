r"""Monotonic rational-quadratic splines, evaluated with few operations.

This is the spline of zuko's neural spline flow, :class:`zuko.transforms.MonotonicRQSTransform`:
the same parameters, the same bins, the same function, so that the weights of the one fit the
other. At the sizes of simulation-based inference (hundreds of rows) the cost is the number of
operations dispatched, not their arithmetic. Here the bin is looked up once, everything after the
look-up works on one scalar per entry, and the gradient is written out by hand.

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

import math
from functools import cache
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


@cache
def _constants(
    bins: int, slope: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the squashing factors (3 K - 1,), the bins' numbers (K,) and a zero."""
    c = torch.full((3 * bins - 1,), 1.0 / abs(math.log(slope)), dtype=dtype, device=device)
    c[: 2 * bins] *= 2
    return c, torch.arange(bins, device=device), torch.zeros((), dtype=dtype, device=device)


def _align(t: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast entries and parameters, at no cost where they match."""
    if t.shape == phi.shape[:-1]:
        return t, phi
    shape = torch.broadcast_shapes(t.shape, phi.shape[:-1])
    return t.expand(shape), phi.expand(*shape, -1)


def _bin(t: Tensor, phi: Tensor, bound: float, slope: float, axis: int) -> tuple[Tensor, ...]:
    """Look up the bin of t among the widths (axis 0) or heights (axis 1).

    Returns, in units of the domain, t itself (*), the bin sizes (*, 2, K), the bin's number k
    (*, 1), its size and start along both axes (*, 2), the slopes at its ends (*, 2), and by how
    much every parameter was squashed (*, 3 K - 1).
    """
    K = (phi.shape[-1] + 1) // 3
    # Division by 1 + |c phi| keeps every parameter within the bounds that `slope` sets.
    squash = (phi * _constants(K, slope, phi.dtype, phi.device)[0]).abs_().add_(1).reciprocal_()
    phi = phi * squash
    sizes = phi[..., : 2 * K].unflatten(-1, (2, K)).softmax(dim=-1)
    ends = sizes.cumsum(dim=-1)
    unit = torch.add(t, bound).div_(2 * bound)
    k = (ends[..., axis, :-1] < unit.unsqueeze(-1)).sum(dim=-1, keepdim=True)
    index = k.unsqueeze(-2).expand(*k.shape[:-1], 2, 1)
    size = sizes.gather(-1, index).squeeze(-1)
    start = ends.gather(-1, index).squeeze(-1).sub_(size)
    # The outermost slopes are one, so that the identity outside joins smoothly.
    knots = F.pad(phi[..., 2 * K :], (1, 1))
    slopes = knots.gather(-1, torch.cat((k, k + 1), dim=-1)).exp_()
    return unit, sizes, k, size, start, slopes, squash


def _inverse(y: Tensor, phi: Tensor, bound: float, slope: float) -> Tensor:
    y, phi = _align(y, phi)
    unit, _, _, size, start, slopes, _ = _bin(y, phi, bound, slope, axis=1)
    w, h = size.unbind(-1)
    x0, y0 = start.unbind(-1)
    d0, d1 = slopes.unbind(-1)
    s = h / w
    # The root of a z² + b z + c = 0 in [0, 1], in the form that does not cancel.
    t = (unit - y0).clamp_min_(0)
    tm = torch.sub(d0 + d1, s, alpha=2).mul_(t)
    a = torch.addcmul(tm, h, s - d0)
    b = torch.addcmul(-tm, h, d0)
    st = s * t
    root = torch.addcmul(b * b, a, st, value=4).clamp_min_(0).sqrt_()
    z = st.mul_(2).div_(b + root).clamp_max_(1)
    x = torch.addcmul(x0, z, w).mul_(2 * bound).sub_(bound)
    return torch.where(y.abs() < bound, x, y)


class _Forward(torch.autograd.Function):
    """Image and log slope, with the gradient of both written out."""

    @staticmethod
    def forward(ctx, x: Tensor, phi: Tensor, bound: float, slope: float):
        ctx.shapes, ctx.bound, ctx.slope = (x.shape, phi.shape), bound, slope
        x, phi = _align(x, phi)
        unit, sizes, k, size, start, slopes, squash = _bin(x, phi, bound, slope, axis=0)
        w, h = size.unbind(-1)
        x0, y0 = start.unbind(-1)
        d0, d1 = slopes.unbind(-1)

        s = h / w
        # Outside, x itself is returned; the clamp only keeps the discarded values finite.
        z = unit.sub_(x0).div_(w).clamp_(0.0, 1.0)
        zc = 1 - z
        b = torch.addcmul(s, torch.sub(d0 + d1, s, alpha=2), z * zc)
        q = (s * z).addcmul_(d0, zc).mul_(z).div_(b)
        a = (s - b).addcmul_(d1, z).addcmul_(d0, zc)
        sb = s / b
        y = torch.addcmul(y0, h, q).mul_(2 * bound).sub_(bound)
        inside = x.abs() < bound
        zero = _constants(sizes.shape[-1], slope, x.dtype, x.device)[2]
        ctx.save_for_backward(inside, squash, sizes, k, slopes, z, zc, s, b, q, a, w, h)
        return torch.where(inside, y, x), torch.where(inside, (sb * sb).mul_(a).log_(), zero)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy: Tensor, gl: Tensor):
        inside, squash, sizes, k, slopes, z, zc, s, b, q, a, w, h = ctx.saved_tensors
        d0, d1 = slopes.unbind(-1)
        _, bins, zero = _constants(sizes.shape[-1], ctx.slope, gy.dtype, gy.device)
        # y came out of the unit interval by a factor of 2 B, x goes into it by the same.
        gx_outside = torch.where(inside, zero, gy)
        gl = torch.where(inside, gl, zero)
        gy = torch.where(inside, gy, zero).mul_(2 * ctx.bound)

        # By n, b and a, as functions of z, s, d0 and d1; a itself contains -b.
        v = z * zc
        gn = gy * h / b
        ga = gl / a
        gb = -torch.addcmul(ga, gn, q).add_(gl / b, alpha=2)
        m = zc - z
        c = torch.sub(d0 + d1, s, alpha=2)
        gz = (gb * c).addcmul_(gn, d0).mul_(m).addcmul_(ga, d1 - d0).addcmul_(gn * s, z, value=2)
        gs = torch.addcmul(ga, gn, z * z).add_(gb).addcmul_(gb, v, value=-2).add_(gl / s, alpha=2)
        gd1 = (gb * v).addcmul_(ga, z).mul_(d1)
        gd0 = (gn + gb).mul_(v).addcmul_(ga, zc).mul_(d0)
        # By the ends of the bin: z = (x - x0) / w, s = h / w.
        gx = gz / w
        gs = gs / w
        gw = torch.addcmul(gx * z, gs, s).neg_()
        gh = torch.addcmul(gs, gy, q)

        # x0 and y0 are sums of the bins before k, so their derivatives reach all of these.
        K = sizes.shape[-1]
        gstart = torch.stack((-gx, gy), dim=-1).unsqueeze(-1)
        gsizes = torch.where((bins < k).unsqueeze(-2), gstart, zero)
        index = k.unsqueeze(-2).expand(*k.shape[:-1], 2, 1)
        gsizes.scatter_(-1, index, torch.stack((gw, gh), dim=-1).unsqueeze(-1))
        gsizes = torch._softmax_backward_data(gsizes, sizes, -1, sizes.dtype)
        gknots = gy.new_zeros(*k.shape[:-1], K + 1)
        gknots.scatter_(-1, torch.cat((k, k + 1), dim=-1), torch.stack((gd0, gd1), dim=-1))
        gphi = torch.cat((gsizes.flatten(-2), gknots[..., 1:-1]), dim=-1)
        gphi.mul_(squash).mul_(squash)
        gx = gx.div_(2 * ctx.bound).add_(gx_outside)
        x_shape, phi_shape = ctx.shapes
        return gx.sum_to_size(x_shape), gphi.sum_to_size(phi_shape), None, None
