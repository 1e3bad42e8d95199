"""Scales of columns in any unit of measurement.

Strains of gravitational waves are 1e-21, pressures in stars 1e16: their squares leave single
precision. So columns are divided by a power of two first, which rounds nothing, and what counts as
constant is relative to a column's own size.
"""

import torch
from sbi.utils.sbiutils import Standardize
from torch import Tensor

__all__ = ["magnitude", "spread", "standardizer"]

# Standard deviation, relative to the largest entry, up to which a column is constant.
_CONSTANT = 1e-12


def magnitude(rows: Tensor) -> Tensor:
    """Return a power of two near the largest entry of each column, one where all are zero.

    Args:
        rows: Shape (n, *event).

    Returns:
        Shape (*event).

    Example:
        >>> magnitude(torch.tensor([[3e-21, 0.0], [-1e-22, 0.0]])).log2().tolist()
        [-69.0, 0.0]
    """
    largest = rows.abs().amax(dim=0)
    unit = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where((unit > 0) & unit.isfinite(), unit, torch.ones_like(unit))


def spread(rows: Tensor) -> Tensor:
    """Return the standard deviation of each column, one where it does not vary.

    What never varies carries no information: its scale is arbitrary.

    Args:
        rows: Shape (n, *event), n at least 2.

    Returns:
        Shape (*event).
    """
    unit = magnitude(rows)
    relative = (rows / unit).std(dim=0)
    return torch.where(relative > _CONSTANT, relative * unit, torch.ones_like(unit))


def standardizer(x: Tensor) -> Standardize:
    """Return a module that subtracts each column's mean and divides by its standard deviation.

    As sbi's ``standardizing_net``, which leaves standard deviations below 1e-7 as they are.

    Args:
        x: Shape (n, *event). Rows with NaN or inf do not count.
    """
    valid = x[x.flatten(1).isfinite().all(dim=1)]
    if len(valid) < 2:
        return Standardize(torch.zeros_like(x[0]), torch.ones_like(x[0]))
    return Standardize(valid.mean(dim=0), spread(valid))
