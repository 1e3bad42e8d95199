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

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.transforms import MonotonicRQSTransform

from .spline_bins import bins_of, constants, look_up

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


def _inverse(y: Tensor, phi: Tensor, bound: float, slope: float) -> tuple[Tensor, ...]:
    """Return x; and z, s, d0 and d1 there, as at the top."""
    unit = torch.add(y, bound).div_(2 * bound)
    _, size, start, slopes = look_up(unit, bins_of(phi, slope), axis=1)
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
        bins = bins_of(phi, slope)
        unit = torch.add(x, bound).div_(2 * bound)
        k, size, start, slopes = look_up(unit, bins, axis=0)
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
        zero = constants(bins.sizes.shape[2], slope, x.dtype, x.device)[3]
        ctx.save_for_backward(
            x, phi, inside, bins.squash, bins.sizes, bins.total, k, slopes, z, zc, s, b, q, a, w, h
        )
        return torch.where(inside, y, x), torch.where(inside, log_slope, zero)

    @staticmethod
    def backward(ctx, gy: Tensor, gl: Tensor):
        x, phi, inside, squash, sizes, total, k, slopes, *in_bin = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_gradient_by_zuko(x, phi, gy, gl, ctx.bound, ctx.slope), None, None
        zero = constants(sizes.shape[2], ctx.slope, gy.dtype, gy.device)[3]
        # y came out of the unit interval by a factor of 2 B, x goes into it by the same.
        gx_outside = torch.where(inside, zero, gy)
        gl = torch.where(inside, gl, zero)
        gy = torch.where(inside, gy, zero).mul_(2 * ctx.bound)
        gx, gsize, gslopes = _gradient_in_bin(gy, gl, slopes, *in_bin)
        # x0 and y0 are sums of the bins before k, so their derivatives reach all of these.
        gstart = torch.stack((-gx, gy), dim=1)
        gphi = torch.empty_like(squash)
        _gradient_of_sizes(gphi, gstart, gsize, sizes, total, k, ctx.slope)
        K = sizes.shape[2]
        gknots = gy.new_zeros(len(gy), K + 1, gy.shape[1])
        gknots.scatter_(1, torch.cat((k, k + 1), dim=1), gslopes)
        gphi[:, 2 * K :] = gknots[:, 1:-1]
        gphi.mul_(squash).mul_(squash)
        return gx.div_(2 * ctx.bound).add_(gx_outside), gphi, None, None


def _gradient_in_bin(
    gy: Tensor,
    gl: Tensor,
    slopes: Tensor,
    z: Tensor,
    zc: Tensor,
    s: Tensor,
    b: Tensor,
    q: Tensor,
    a: Tensor,
    w: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients by x, by (w, h), shape (d, 2, N), and by the logarithms of (d0, d1)."""
    d0, d1 = slopes.unbind(1)
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
    return gx, torch.stack((gw, gh), dim=1), torch.stack((gd0, gd1), dim=1)


def _gradient_of_sizes(
    gphi: Tensor,
    gstart: Tensor,
    gsize: Tensor,
    sizes: Tensor,
    total: Tensor,
    k: Tensor,
    slope: float,
) -> None:
    """Write the gradient by the bins' exponents into the first 2 K rows of ``gphi``.

    ``gstart`` and ``gsize``, shape (d, 2, N), are by start and size of bin k along both axes.
    """
    K = sizes.shape[2]
    _, numbers, _, zero = constants(K, slope, gphi.dtype, gphi.device)
    gsizes = torch.where((numbers < k).unsqueeze(1), gstart.unsqueeze(2), zero)
    index = k.unsqueeze(1).expand(-1, 2, 1, -1)
    gsizes.scatter_(2, index, gsize.unsqueeze(2))
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


def _gradient_by_zuko(
    x: Tensor, phi: Tensor, gy: Tensor, gl: Tensor, bound: float, slope: float
) -> tuple[Tensor | None, ...]:
    """Return the gradient by x and phi in a form that can be differentiated again, but slower."""
    bins = (phi.shape[1] + 1) // 3
    parts = phi.movedim(1, -1).split([bins, bins, bins - 1], dim=-1)
    outputs = MonotonicRQSTransform(*parts, bound=bound, slope=slope).call_and_ladj(x)
    wanted = [each for each in (x, phi) if each.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, (gy, gl), create_graph=True))
    return tuple(next(found) if each.requires_grad else None for each in (x, phi))
