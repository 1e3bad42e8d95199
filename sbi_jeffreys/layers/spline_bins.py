"""The bins of a rational-quadratic spline, and which of them an entry falls into.

What :mod:`sbi_jeffreys.layers.splines` evaluates: from unconstrained parameters to sizes, ends and
slopes.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Bins", "bins_of", "constants", "look_up"]


@cache
def constants(
    bins: int, slope: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squashing factors (3 K - 1,), bins' numbers (K, 1), ones below (K, K), a zero."""
    of: dict[str, Any] = {"dtype": dtype, "device": device}
    c = torch.full((3 * bins - 1,), 1.0 / abs(math.log(slope)), **of)
    c[: 2 * bins] *= 2
    numbers = torch.arange(bins, **of).unsqueeze(-1)
    return c, numbers, torch.ones(bins, bins, **of).tril_(), torch.zeros((), **of)


class Bins(NamedTuple):
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


def bins_of(phi: Tensor, slope: float) -> Bins:
    """Return the bins that parameters (d, 3 K - 1, *rows) say."""
    K = (phi.shape[1] + 1) // 3
    c, _, below, _ = constants(K, slope, phi.dtype, phi.device)
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
    knots = phi.new_zeros(len(phi), K + 1, *phi.shape[2:])
    knots[:, 1:-1] = phi[:, 2 * K :]
    return Bins(sizes, ends, ends[:, :, -1], knots, squash)


def look_up(unit: Tensor, bins: Bins, axis: int) -> tuple[Tensor, ...]:
    """Find each of ``unit`` (d, *rows) in a bin, by widths (axis 0) or heights (axis 1).

    Returns, in units of the domain, the bin's number k (d, 1, *rows), its size and start along
    both axes (d, 2, *rows), and the slopes at its ends (d, 2, *rows).
    """
    rows = unit.shape[1:]
    edges = bins.ends[:, axis, :-1].detach()
    where = (unit * bins.total[:, axis]).unsqueeze(1).detach()
    # As numbers: to compare into truth values, and to count these, takes three times as long.
    passed = edges.new_empty(torch.broadcast_shapes(edges.shape, where.shape))
    k = torch.lt(edges, where, out=passed).sum(dim=1, keepdim=True).long()
    index = k.unsqueeze(1).expand(-1, 2, 1, *rows)
    sizes, ends, knots = bins.sizes, bins.ends, bins.knots
    if sizes.shape[3:] != rows:
        sizes, ends = (t.expand(*t.shape[:3], *rows) for t in (sizes, ends))
        knots = knots.expand(*knots.shape[:2], *rows)
    size = sizes.gather(2, index).squeeze(2)
    start = ends.gather(2, index).squeeze(2).sub_(size)
    slopes = knots.gather(1, torch.cat((k, k + 1), dim=1)).exp_()
    return k, size.div_(bins.total), start.div_(bins.total), slopes
