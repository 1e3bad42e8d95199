"""The spline by operations of torch, each on all entries at once: what a CPU does fast.

The bin is looked up once, everything after the look-up works on one scalar per entry, and the
gradient is written out by hand. Rows are the last dimension, where processors want them: eight bins
in the last one leave half of the vector units idle. Formulas and letters are those of
:mod:`sbi_jeffreys.layers.splines`; what a GPU has is :mod:`sbi_jeffreys.kernels.splines`.
"""

import torch
from torch import Tensor

from .spline_bins import bins_of, constants, look_up

__all__ = ["image", "image_gradient", "inverse"]


def image(x: Tensor, phi: Tensor, bound: float, slope: float) -> tuple[Tensor, ...]:
    """Return image and log slope, shapes (d, N), and what the gradient needs.

    Args:
        x: Entries, shape (d, N).
        phi: Unconstrained parameters, shape (d, 3 K - 1, N).
        bound: Bound of domain and codomain.
        slope: Smallest slope.
    """
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
    kept = inside, bins.squash, bins.sizes, bins.total, k, slopes, z, zc, s, b, q, a, w, h
    return torch.where(inside, y, x), torch.where(inside, log_slope, zero), *kept


def image_gradient(
    gy: Tensor, gl: Tensor, bound: float, slope: float, *kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradients by x and phi from those by image and log slope.

    ``kept`` is what :func:`image` has returned for it.
    """
    inside, squash, sizes, total, k, slopes, *in_bin = kept
    zero = constants(sizes.shape[2], slope, gy.dtype, gy.device)[3]
    # y came out of the unit interval by a factor of 2 B, x goes into it by the same.
    gx_outside = torch.where(inside, zero, gy)
    gl = torch.where(inside, gl, zero)
    gy = torch.where(inside, gy, zero).mul_(2 * bound)
    gx, gsize, gslopes = _gradient_in_bin(gy, gl, slopes, *in_bin)
    # x0 and y0 are sums of the bins before k, so their derivatives reach all of these.
    gstart = torch.stack((-gx, gy), dim=1)
    gphi = torch.empty_like(squash)
    _gradient_of_sizes(gphi, gstart, gsize, sizes, total, k, slope)
    K = sizes.shape[2]
    gknots = gy.new_zeros(len(gy), K + 1, gy.shape[1])
    gknots.scatter_(1, torch.cat((k, k + 1), dim=1), gslopes)
    gphi[:, 2 * K :] = gknots[:, 1:-1]
    gphi.mul_(squash).mul_(squash)
    return gx.div_(2 * bound).add_(gx_outside), gphi


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
    numbers = constants(K, slope, gphi.dtype, gphi.device)[1]
    # One for bins before k, else zero: arithmetic is faster than to choose.
    before = (k.to(gphi) - numbers).clamp_(0.0, 1.0)
    gsizes = before.unsqueeze(1) * gstart.unsqueeze(2)
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


def inverse(
    y: Tensor, phi: Tensor, bound: float, slope: float, *, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the entries whose image is y, and the logarithm of the slope there if asked for.

    Args:
        y: Shape (d, *rows).
        phi: Shape (d, 3 K - 1, *rows); where an entry of rows is one here, all of y share it.
        bound: As in :func:`image`.
        slope: As there.
        with_slope: Whether to return the logarithm of the slope, too.
    """
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
    inside = y.abs() < bound
    x = torch.where(inside, x, y)
    if not with_slope:
        return x, None
    log_slope = _slope(z, 1 - z, s, d0, d1)[2]
    return x, torch.where(inside, log_slope, torch.zeros_like(log_slope))


def _slope(z: Tensor, zc: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, ...]:
    """Return b and a, and the logarithm of the slope, in units of the domain."""
    b = torch.addcmul(s, torch.sub(d0 + d1, s, alpha=2), z * zc)
    a = (s - b).addcmul_(d1, z).addcmul_(d0, zc)
    return b, a, s.div(b).square_().mul_(a).log_()
