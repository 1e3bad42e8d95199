"""Principal axes of x: the directions along which its columns vary together."""

import torch
from torch import Tensor

from .regression import MOST_FEATURES

__all__ = ["bounded_columns", "principal_axes"]

# Rows that tell the axes, of few columns and of many: one of two matrices is decomposed, with a
# row for each column or one for each row.
_ROWS, _ROWS_OF_MANY = 10_000, 1500
# Standard deviation, relative to the largest, below which an axis is rounding.
_NONE = 1e-4
_CUT = 10.0


def bounded_columns(standardized: Tensor) -> Tensor:
    """Return data in standard deviations, cut off at ten: a far one would be in every component.

    Pixels that are dark in most images lie further out than other outliers.
    """
    return standardized.clamp(-_CUT, _CUT)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (c,), the principal axes (c, r) and standard deviations along these (r,).

    In descending order, 500 at most, in double precision.

    Args:
        x: Data in standard deviations without NaN or inf, shape (n, c), n at least 2.
    """
    most = _ROWS if x.shape[1] <= MOST_FEATURES else _ROWS_OF_MANY
    x = x[:: max(1, -(-len(x) // most))].double()
    mean = x.mean(dim=0)
    centred = (x - mean) / (len(x) - 1) ** 0.5
    wide = len(x) < x.shape[1]
    variances, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    std = variances.clamp_min(0.0).sqrt().flip(0)[:MOST_FEATURES]
    std = std[std > _NONE * std[:1]]
    axes = vectors.flip(1)[:, : len(std)]
    return mean, centred.T @ axes / std if wide else axes, std
