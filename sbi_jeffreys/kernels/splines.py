"""The spline on a GPU: one kernel each for its image, its gradient and its inverse.

A GPU does the fifty operations of :mod:`sbi_jeffreys.layers.splines` one after the other, and each
takes microseconds, however few entries there are. Here an instance of a kernel does all of them for
one entry: it goes through the bins twice, and remembers none. Nothing is kept for the gradient but
what went in. Formulas and letters are those of that module.

The kernels are written in Triton, which comes with torch where torch knows GPUs.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["image", "image_gradient", "inverse"]

# Entries that are done together.
_BLOCK = 128


def image(x: Tensor, phi: Tensor, bound: float, slope: float) -> tuple[Tensor, ...]:
    """Return image and log slope, and what the gradient needs.

    All of it as in :mod:`sbi_jeffreys.layers.spline_operations`.
    """
    y, log_slope = x.new_empty(x.shape), x.new_empty(x.shape)
    strides = *x.stride(), *phi.stride()
    if x.numel():
        with torch.cuda.device_of(x):
            _image[_grid(x)](
                x, phi, y, log_slope, x.shape[1], *strides, **_options(phi, bound, slope)
            )
    return y, log_slope, x, phi


def image_gradient(
    gy: Tensor, gl: Tensor, bound: float, slope: float, x: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradients by x and phi from those by image and log slope."""
    gx, gphi = x.new_empty(x.shape), phi.new_empty(phi.shape)
    strides = *x.stride(), *phi.stride(), *gy.stride(), *gl.stride()
    if x.numel():
        with torch.cuda.device_of(x):
            _image_gradient[_grid(x)](
                x, phi, gy, gl, gx, gphi, x.shape[1], *strides, **_options(phi, bound, slope)
            )
    return gx, gphi


def inverse(
    y: Tensor, phi: Tensor, bound: float, slope: float, *, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Return the entries whose image is y, and the logarithm of the slope there, which is free."""
    shape, rows, given = y.shape, y.shape[1:], phi.shape[2:]
    while given and given[0] == 1:
        given = given[1:]
    # A kernel knows by an entry's number alone which parameters are its own: those of all entries
    # in the last dimensions, the same ones in those before.
    if given != rows[len(rows) - len(given) :]:
        phi = phi.expand(*phi.shape[:2], *rows)
    y, phi = y.reshape(len(y), -1), phi.reshape(*phi.shape[:2], -1)
    x, log_slope = y.new_empty(y.shape), y.new_empty(y.shape)
    strides, sizes = (*y.stride(), *phi.stride()), (y.shape[1], phi.shape[2])
    if y.numel():
        with torch.cuda.device_of(y):
            _inverse[_grid(y)](
                y, phi, x, log_slope, *sizes, *strides, **_options(phi, bound, slope)
            )
    return x.view(shape), log_slope.view(shape)


def _grid(x: Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[1], _BLOCK), x.shape[0]


def _options(phi: Tensor, bound: float, slope: float) -> dict[str, float | int]:
    squash = 1 / abs(math.log(slope))
    return {"BOUND": bound, "C": squash, "K": (phi.shape[1] + 1) // 3, "BLOCK": _BLOCK}


# Sizes and strides differ from call to call: a kernel for each kind of number would be too many.
_NUMBERS = ["num", "period", "x_d", "x_n", "y_d", "y_n", "phi_d", "phi_j", "phi_n"]
_NUMBERS += ["gy_d", "gy_n", "gl_d", "gl_n"]


@triton.jit
def _squashed(phi, c):
    """Return a parameter within its bounds, and by how much it was squashed."""
    squash = 1 / (1 + tl.abs(phi * c))
    return phi * squash, squash


@triton.jit
def _size(phi, j, phi_j, here, c):
    """Return the size of bin j but for the sum of all, and by how much it was squashed."""
    exponent, squash = _squashed(tl.load(phi + j * phi_j, here, other=0.0), c)
    return tl.exp(exponent), squash


@triton.jit
def _knot(phi, j, phi_j, here, c):
    """Return the slope at inner knot j, 1 where that is none."""
    exponent, _ = _squashed(tl.load(phi + j * phi_j, here, other=0.0), c)
    return tl.exp(exponent)


@triton.jit
def _look_up(unit, phi, phi_j, here, AXIS: tl.constexpr, K: tl.constexpr, C: tl.constexpr):
    """Return the number of the bin that an entry is in, its size, start and slopes, and totals."""
    total_w, total_h = tl.zeros_like(unit), tl.zeros_like(unit)
    for j in tl.static_range(K):
        total_w += _size(phi, j, phi_j, here, 2 * C)[0]
        total_h += _size(phi, K + j, phi_j, here, 2 * C)[0]
    target = unit * total_w if AXIS == 0 else unit * total_h
    w, h = tl.zeros_like(unit), tl.zeros_like(unit)
    x0, y0 = tl.zeros_like(unit), tl.zeros_like(unit)
    end_w, end_h = tl.zeros_like(unit), tl.zeros_like(unit)
    k = tl.zeros_like(unit).to(tl.int32)
    for j in tl.static_range(K):
        size_w = _size(phi, j, phi_j, here, 2 * C)[0]
        size_h = _size(phi, K + j, phi_j, here, 2 * C)[0]
        reached = k == j
        w, h = tl.where(reached, size_w, w), tl.where(reached, size_h, h)
        x0, y0 = tl.where(reached, end_w, x0), tl.where(reached, end_h, y0)
        end_w += size_w
        end_h += size_h
        if j < K - 1:
            if AXIS == 0:
                k += (reached & (end_w < target)).to(tl.int32)
            else:
                k += (reached & (end_h < target)).to(tl.int32)
    d0 = _knot(phi, 2 * K + k - 1, phi_j, here & (k > 0), C)
    d1 = _knot(phi, 2 * K + k, phi_j, here & (k < K - 1), C)
    return k, w / total_w, h / total_h, x0 / total_w, y0 / total_h, d0, d1, total_w, total_h


@triton.jit
def _in_bin(z, s, d0, d1):
    """Return b and a, and the logarithm of the slope, in units of the domain."""
    zc = 1 - z
    b = s + (d0 + d1 - 2 * s) * (z * zc)
    a = s - b + d1 * z + d0 * zc
    ratio = s / b
    return b, a, tl.log(ratio * ratio * a)


@triton.jit
def _rows(num, BLOCK: tl.constexpr):
    """Return which feature and which entries are looked at, and whether there are such."""
    feature = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return feature, n, n < num


@triton.jit(do_not_specialize=_NUMBERS)
def _image(
    x_at, phi_at, y_at, l_at, num, x_d, x_n, phi_d, phi_j, phi_n,
    BOUND: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    feature, n, here = _rows(num, BLOCK)
    # Places in memory may lie beyond what 32 bits hold.
    num, phi_j = num.to(tl.int64), phi_j.to(tl.int64)
    x = tl.load(x_at + feature * x_d + n * x_n, here, other=0.0)
    phi = phi_at + feature * phi_d + n * phi_n
    unit = (x + BOUND) / (2 * BOUND)
    _, w, h, x0, y0, d0, d1, _, _ = _look_up(unit, phi, phi_j, here, 0, K, C)
    s = h / w
    # Outside, x itself is returned; the clamp only keeps the discarded values finite.
    z = tl.minimum(tl.maximum((unit - x0) / w, 0.0), 1.0)
    b, _, log_slope = _in_bin(z, s, d0, d1)
    y = (y0 + h * (z * (s * z + d0 * (1 - z)) / b)) * (2 * BOUND) - BOUND
    inside = tl.abs(x) < BOUND
    out = feature * num + n
    tl.store(y_at + out, tl.where(inside, y, x), here)
    tl.store(l_at + out, tl.where(inside, log_slope, 0.0), here)


@triton.jit(do_not_specialize=_NUMBERS)
def _image_gradient(
    x_at, phi_at, gy_at, gl_at, gx_at, gphi_at,
    num, x_d, x_n, phi_d, phi_j, phi_n, gy_d, gy_n, gl_d, gl_n,
    BOUND: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    feature, n, here = _rows(num, BLOCK)
    # Places in memory may lie beyond what 32 bits hold.
    num, phi_j = num.to(tl.int64), phi_j.to(tl.int64)
    x = tl.load(x_at + feature * x_d + n * x_n, here, other=0.0)
    phi = phi_at + feature * phi_d + n * phi_n
    unit = (x + BOUND) / (2 * BOUND)
    k, w, h, x0, y0, d0, d1, total_w, total_h = _look_up(unit, phi, phi_j, here, 0, K, C)
    s = h / w
    z = tl.minimum(tl.maximum((unit - x0) / w, 0.0), 1.0)
    zc, v = 1 - z, z * (1 - z)
    b, a, _ = _in_bin(z, s, d0, d1)
    q = z * (s * z + d0 * zc) / b

    inside = tl.abs(x) < BOUND
    gy_given = tl.load(gy_at + feature * gy_d + n * gy_n, here, other=0.0)
    gl = tl.load(gl_at + feature * gl_d + n * gl_n, here, other=0.0)
    # y came out of the unit interval by a factor of 2 B, x goes into it by the same.
    gy, gl = tl.where(inside, gy_given, 0.0) * (2 * BOUND), tl.where(inside, gl, 0.0)

    # By n, b and a, as functions of z, s, d0 and d1; a itself contains -b.
    gn, ga = gy * h / b, gl / a
    gb = -(ga + gn * q + 2 * (gl / b))
    gz = (gb * (d0 + d1 - 2 * s) + gn * d0) * (zc - z) + ga * (d1 - d0) + 2 * (gn * s * z)
    gs = ga + gn * (z * z) + gb - 2 * gb * v + 2 * (gl / s)
    # By the logarithms of the slopes.
    gd1 = (gb * v + ga * z) * d1
    gd0 = ((gn + gb) * v + ga * zc) * d0
    # By the bin's start and size: z = (x - x0) / w, s = h / w.
    gx, gs = gz / w, gs / w
    gw, gh = -(gx * z + gs * s), gs + gy * q
    tl.store(gx_at + feature * num + n, tl.where(inside, gx / (2 * BOUND), gy_given), here)

    # x0 and y0 are sums of the bins before k. Through the softmax: sizes sum to one.
    mean_w, mean_h = gw * w - gx * x0, gh * h + gy * y0
    out = gphi_at + feature * (3 * K - 1) * num + n
    for j in tl.static_range(K):
        size, squash = _size(phi, j, phi_j, here, 2 * C)
        g = tl.where(j < k, -gx, tl.where(j == k, gw, 0.0)) - mean_w
        tl.store(out + j * num, g * (size / total_w) * squash * squash, here)
        size, squash = _size(phi, K + j, phi_j, here, 2 * C)
        g = tl.where(j < k, gy, tl.where(j == k, gh, 0.0)) - mean_h
        tl.store(out + (K + j) * num, g * (size / total_h) * squash * squash, here)
    for j in tl.static_range(K - 1):
        _, squash = _squashed(tl.load(phi + (2 * K + j) * phi_j, here, other=0.0), C)
        g = tl.where(k == j, gd1, tl.where(k == j + 1, gd0, 0.0))
        tl.store(out + (2 * K + j) * num, g * squash * squash, here)


@triton.jit(do_not_specialize=_NUMBERS)
def _inverse(
    y_at, phi_at, x_at, l_at, num, period, y_d, y_n, phi_d, phi_j, phi_n,
    BOUND: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    feature, n, here = _rows(num, BLOCK)
    # Places in memory may lie beyond what 32 bits hold.
    num, phi_j = num.to(tl.int64), phi_j.to(tl.int64)
    y = tl.load(y_at + feature * y_d + n * y_n, here, other=0.0)
    phi = phi_at + feature * phi_d + (n % period) * phi_n
    unit = (y + BOUND) / (2 * BOUND)
    _, w, h, x0, y0, d0, d1, _, _ = _look_up(unit, phi, phi_j, here, 1, K, C)
    s = h / w
    # The root of a z² + b z + c = 0 in [0, 1], in the form that does not cancel.
    t = tl.maximum(unit - y0, 0.0)
    tm = (d0 + d1 - 2 * s) * t
    a, b = tm + h * (s - d0), h * d0 - tm
    root = tl.sqrt(tl.maximum(b * b + 4 * a * (s * t), 0.0))
    z = tl.minimum(2 * (s * t) / (b + root), 1.0, propagate_nan=tl.PropagateNan.ALL)
    _, _, log_slope = _in_bin(z, s, d0, d1)
    inside = tl.abs(y) < BOUND
    out = feature * num + n
    tl.store(x_at + out, tl.where(inside, (x0 + z * w) * (2 * BOUND) - BOUND, y), here)
    tl.store(l_at + out, tl.where(inside, log_slope, 0.0), here)
