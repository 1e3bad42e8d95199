r"""Monotonic rational-quadratic splines, evaluated with few operations.

This is the spline of zuko's neural spline flow, :class:`zuko.transforms.MonotonicRQSTransform`:
the same parameters, the same bins, the same function, so that the weights of the one fit the
other. The bin is looked up once, everything after the look-up works on one scalar per entry, and
the gradient is written out by hand. Rows are the last dimension, where processors want them: eight
bins in the last one leave half of the vector units idle.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

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
    return _Forward.apply(x, phi, bound, slope)


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
        x = _inverse(y, phi, bound, slope)[0]
    if torch.is_grad_enabled() and (y.requires_grad or phi.requires_grad):
        # One Newton step from the solution: it adds nothing but the derivatives of the inverse.
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
    x, z, s, d0, d1 = _inverse(y, phi, bound, slope)
    log_slope = _slope(z, 1 - z, s, d0, d1)[2]
    return x, torch.where(y.abs() < bound, log_slope, torch.zeros_like(log_slope))


@cache
def _constants(
    bins: int, slope: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squashing factors (3 K - 1,), bins' numbers (K, 1), ones below (K, K), a zero."""
    of: dict[str, Any] = {"dtype": dtype, "device": device}
    c = torch.full((3 * bins - 1,), 1.0 / abs(math.log(slope)), **of)
    c[: 2 * bins] *= 2
    numbers = torch.arange(bins, device=device).unsqueeze(-1)
    return c, numbers, torch.ones(bins, bins, **of).tril_(), torch.zeros((), **of)


class _Bins(NamedTuple):
    """Bins along both axes, in units of the domain but for one factor.

    ``sizes`` and ``ends`` (d, 2, K, *rows), which sum to ``total`` (d, 2, *rows); ``knots``, the
    logarithms of the slopes (d, K + 1, *rows); ``squash``, by how much every parameter was
    squashed (d, 3 K - 1, *rows).
    """

    sizes: Tensor
    ends: Tensor
    total: Tensor
    knots: Tensor
    squash: Tensor


def _bins(phi: Tensor, slope: float) -> _Bins:
    """Return the bins that parameters (d, 3 K - 1, *rows) say."""
    K = (phi.shape[1] + 1) // 3
    c, _, below, _ = _constants(K, slope, phi.dtype, phi.device)
    # Division by 1 + |c phi| keeps every parameter within the bounds that `slope` sets.
    squash = (phi * c.view(-1, *[1] * (phi.dim() - 2))).abs_().add_(1).reciprocal_()
    phi = phi * squash
    # A softmax, whose exponents cannot overflow any more.
    sizes = phi[:, : 2 * K].unflatten(1, (2, K)).exp()
    # Sums by a product, which is faster; not on a GPU, where products may be rounded (TF32).
    rows = phi[0, 0].numel()
    flat = sizes.reshape(*sizes.shape[:3], rows)
    ends = (flat.cumsum(2) if sizes.is_cuda else below @ flat).view_as(sizes)
    # The outermost slopes are one, so that the identity outside joins smoothly.
    outermost = torch.zeros_like(phi[:, :1])
    knots = torch.cat((outermost, phi[:, 2 * K :], outermost), dim=1)
    return _Bins(sizes, ends, ends[:, :, -1], knots, squash)


def _look_up(unit: Tensor, bins: _Bins, axis: int) -> tuple[Tensor, ...]:
    """Find each of ``unit`` (d, *rows) in a bin, by widths (axis 0) or heights (axis 1).

    Returns, in units of the domain, the bin's number k (d, 1, *rows), its size and start along
    both axes (d, 2, *rows), and the slopes at its ends (d, 2, *rows).
    """
    rows = unit.shape[1:]
    edges = bins.ends[:, axis, :-1]
    k = (edges < (unit * bins.total[:, axis]).unsqueeze(1)).sum(dim=1, keepdim=True)
    index = k.unsqueeze(1).expand(-1, 2, 1, *rows)
    sizes, ends, knots = bins.sizes, bins.ends, bins.knots
    if sizes.shape[3:] != rows:
        sizes, ends = (t.expand(*t.shape[:3], *rows) for t in (sizes, ends))
        knots = knots.expand(*knots.shape[:2], *rows)
    size = sizes.gather(2, index).squeeze(2)
    start = ends.gather(2, index).squeeze(2).sub_(size)
    slopes = knots.gather(1, torch.cat((k, k + 1), dim=1)).exp_()
    return k, size.div_(bins.total), start.div_(bins.total), slopes


def _inverse(y: Tensor, phi: Tensor, bound: float, slope: float) -> tuple[Tensor, ...]:
    """Return x; and z, s, d0 and d1 there, as at the top."""
    unit = torch.add(y, bound).div_(2 * bound)
    _, size, start, slopes = _look_up(unit, _bins(phi, slope), axis=1)
    w, h = size.unbind(1)
    x0, y0 = start.unbind(1)
    d0, d1 = slopes.unbind(1)
    s = h / w
    # The root of a z² + b z + c = 0 in [0, 1], in the form that does not cancel.
    t = unit.sub_(y0).clamp_min_(0)
    tm = torch.sub(d0 + d1, s, alpha=2).mul_(t)
    a = torch.addcmul(tm, h, s - d0)
    b = torch.addcmul(-tm, h, d0)
    st = s * t
    root = torch.addcmul(b * b, a, st, value=4).clamp_min_(0).sqrt_()
    z = st.mul_(2).div_(b + root).clamp_max_(1)
    x = torch.addcmul(x0, z, w).mul_(2 * bound).sub_(bound)
    return torch.where(y.abs() < bound, x, y), z, s, d0, d1


def _slope(z: Tensor, zc: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, ...]:
    """Return b and a, as at the top, and the logarithm of the slope, in units of the domain."""
    b = torch.addcmul(s, torch.sub(d0 + d1, s, alpha=2), z * zc)
    a = (s - b).addcmul_(d1, z).addcmul_(d0, zc)
    return b, a, s.div(b).square_().mul_(a).log_()


class _Forward(torch.autograd.Function):
    """Image and log slope, with the gradient of both written out."""

    @staticmethod
    def forward(ctx, x: Tensor, phi: Tensor, bound: float, slope: float):
        ctx.bound, ctx.slope = bound, slope
        bins = _bins(phi, slope)
        unit = torch.add(x, bound).div_(2 * bound)
        k, size, start, slopes = _look_up(unit, bins, axis=0)
        w, h = size.unbind(1)
        x0, y0 = start.unbind(1)
        d0, d1 = slopes.unbind(1)

        s = h / w
        # Outside, x itself is returned; the clamp only keeps the discarded values finite.
        z = unit.sub_(x0).div_(w).clamp_(0.0, 1.0)
        zc = 1 - z
        b, a, log_slope = _slope(z, zc, s, d0, d1)
        q = (s * z).addcmul_(d0, zc).mul_(z).div_(b)
        y = torch.addcmul(y0, h, q).mul_(2 * bound).sub_(bound)
        inside = x.abs() < bound
        zero = _constants(bins.sizes.shape[2], slope, x.dtype, x.device)[3]
        ctx.save_for_backward(
            inside, bins.squash, bins.sizes, bins.total, k, slopes, z, zc, s, b, q, a, w, h
        )
        return torch.where(inside, y, x), torch.where(inside, log_slope, zero)

    @staticmethod
    def backward(ctx, gy: Tensor, gl: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The spline's gradient is written out and has no derivative of its own: "
                "create_graph=True, as for second derivatives of log_prob, is not supported. Take "
                "differences of the gradient, or sbi's NPE with 'zuko_nsf'."
            )
        inside, squash, sizes, total, k, slopes, z, zc, s, b, q, a, w, h = ctx.saved_tensors
        d0, d1 = slopes.unbind(1)
        K = sizes.shape[2]
        _, numbers, _, zero = _constants(K, ctx.slope, gy.dtype, gy.device)
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

        gphi = torch.empty_like(squash)
        # x0 and y0 are sums of the bins before k, so their derivatives reach all of these.
        gstart = torch.stack((-gx, gy), dim=1).unsqueeze(2)
        gsizes = torch.where((numbers < k).unsqueeze(1), gstart, zero)
        index = k.unsqueeze(1).expand(-1, 2, 1, -1)
        gsizes.scatter_(2, index, torch.stack((gw, gh), dim=1).unsqueeze(2))
        # Through the softmax.
        sizes = sizes / total.unsqueeze(2)
        gsizes.mul_(sizes)
        torch.addcmul(
            gsizes,
            sizes,
            gsizes.sum(dim=2, keepdim=True),
            value=-1,
            out=gphi[:, : 2 * K].unflatten(1, (2, K)),
        )
        gknots = gy.new_zeros(len(gy), K + 1, gy.shape[1])
        gknots.scatter_(1, torch.cat((k, k + 1), dim=1), torch.stack((gd0, gd1), dim=1))
        gphi[:, 2 * K :] = gknots[:, 1:-1]
        gphi.mul_(squash).mul_(squash)
        return gx.div_(2 * ctx.bound).add_(gx_outside), gphi, None, None
