r"""Mixtures of Gaussians for many parameters at once: their density, and draws.

Each is told by a mean :math:`m` and a lower triangular matrix :math:`A`, the Cholesky factor of its
precision, in coordinates in which the linear likelihood is standard normal: the logarithm of its
density is :math:`-\tfrac12 \| A (w - m) \|^2 + \log |A|` up to a constant.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.devices import widest
from ..utils.logsumexp import logsumexp
from ..utils.squares import sum_of_squares

__all__ = [
    "LowerEntries",
    "Mixture",
    "draw_category",
    "draw_each",
    "log_prob_of_all",
    "log_prob_of_pairs",
]


class Mixture(NamedTuple):
    """K Gaussians of c columns for each parameter: all but the last are (*, K, .).

    ``mean`` (*, K, c); ``log_scale`` (*, K, c), the logarithms of A's diagonal; ``lower``
    (*, K, E), its entries below that; ``log_weight`` (*, K), normalised.
    """

    mean: Tensor
    log_scale: Tensor
    lower: Tensor
    log_weight: Tensor


class LowerEntries(NamedTuple):
    """Where the E entries below the diagonal stand.

    ``places`` (2, E) are their rows and columns; ``rows`` and ``columns`` (E, c) the same, one-hot.
    """

    places: Tensor
    rows: Tensor
    columns: Tensor


def log_prob_of_pairs(w: Tensor, mixture: Mixture, entries: LowerEntries) -> Tensor:
    """Return the log mixture of data that each go with one of the mixtures, up to a constant.

    Args:
        w: Whitened data, shape (B, c).
        mixture: For parameters of shape (*, B).
        entries: Of the matrices.

    Returns:
        Nats, shape (*, B).
    """
    difference = w.unsqueeze(-2) - mixture.mean
    product = mixture.log_scale.exp() * difference
    if len(entries.rows):
        # A lower triangular matrix times a vector, for many small ones, as large products.
        product = product + (mixture.lower * (difference @ entries.columns.T)) @ entries.rows
    distance = sum_of_squares(product, -1)
    return logsumexp(mixture.log_scale.sum(-1) + mixture.log_weight - 0.5 * distance, -1)


def log_prob_of_all(w: Tensor, mixture: Mixture, entries: LowerEntries) -> Tensor:
    """Return the log mixtures of data that all go with all: matrix products alone.

    Args:
        w: Whitened data, shape (B, c).
        mixture: For S parameters.
        entries: Of the matrices.

    Returns:
        Nats up to a constant, shape (S, B).
    """
    m, scale = mixture.mean, mixture.log_scale.exp()
    if len(entries.rows):
        A = _factor(scale, mixture.lower, entries)
        # A (w - m) for all of both, as one product.
        of_mean = (A @ m.unsqueeze(-1)).neg().flatten(0, -2)
        product = torch.addmm(of_mean, A.flatten(0, -2), w.T).unflatten(0, A.shape[:-1])
        distance = sum_of_squares(product, -2)
    elif w.shape[-1] == 1:
        distance = (scale * (m - w.T)).square()
    else:
        distance = _distance_by_column(w, m, scale)
    log_norm = mixture.log_scale.sum(-1) + mixture.log_weight
    return logsumexp(log_norm.unsqueeze(-1) - 0.5 * distance, -2)


def _distance_by_column(w: Tensor, m: Tensor, scale: Tensor) -> Tensor:
    """Return the squares of s (w - m), summed over columns, (S, K, B), as products of matrices.

    Sharp data are many units from where they are not: what these squares differ by has few digits.
    """
    wide = widest(w.device)
    p, m, w_t = scale.to(wide).square(), m.to(wide), w.to(wide).T
    constant = (p * m.square()).sum(-1, keepdim=True)
    return (constant - 2 * (p * m) @ w_t + p @ w_t.square()).to(w.dtype)


def draw_each(mixture: Mixture, entries: LowerEntries) -> Tensor:
    """Return one draw of each mixture, whitened, shape (B, c), for B parameters."""
    m, log_scale, lower, log_weight = mixture
    k = draw_category(log_weight)
    one = torch.arange(len(m), device=m.device)
    m, sharpness, lower = m[one, k], log_scale[one, k].exp(), lower[one, k]
    noise = torch.randn_like(m)
    if not len(entries.rows):
        return m + noise / sharpness
    A = _factor(sharpness, lower, entries)
    return m + torch.linalg.solve_triangular(A, noise.unsqueeze(-1), upper=False).squeeze(-1)


def draw_category(logits: Tensor) -> Tensor:
    """Return a draw of the last dimension of logits (*, K), shape (*), by Gumbel's trick."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(dim=-1)


def _factor(scale: Tensor, lower: Tensor, entries: LowerEntries) -> Tensor:
    A = torch.diag_embed(scale)
    A[..., entries.places[0], entries.places[1]] = lower
    return A
