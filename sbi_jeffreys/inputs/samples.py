"""Checks of samples of a density: each says what was wrong, with the value, and what to do."""

from typing import Any

import torch
from torch import Tensor

from .arrays import as_float
from .simulations import check_finite, constant_column

__all__ = ["check_points", "check_trainable", "split_samples"]


def split_samples(samples: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return samples to train on and, at random, a fraction of them that is held out.

    Args:
        samples: Shape (n, d).
        fraction: Between 0 and 1.

    Raises:
        ValueError: If fewer than 2 remain to train on, or the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), got {fraction}.")
    num = int((1 - fraction) * len(samples))
    if num < 2:
        raise ValueError(
            f"{len(samples)} samples are too few: {num} to train on and {len(samples) - num} to "
            "validate; give more, or pass validation_data."
        )
    order = torch.randperm(len(samples))
    return samples[order[:num]], samples[order[num:]]


def check_points(name: str, values: Any, dim: int | None = None) -> Tensor:
    """Return points as float32, on the CPU.

    Args:
        name: What they are called in messages.
        values: A tensor or array of real numbers, shape (n, d).
        dim: The d that is asked for, if any.

    Raises:
        TypeError: If they are no array of real numbers.
        ValueError: If shape or values are not usable.
    """
    points = as_float(name, values).cpu()
    if points.dim() != 2 or 0 in points.shape:
        raise ValueError(
            f"{name} must have shape (n, d), got {tuple(points.shape)}. For a single number per "
            "sample use .reshape(-1, 1)."
        )
    if dim is not None and points.shape[1] != dim:
        raise ValueError(f"{name} has {points.shape[1]} columns, the samples have {dim}.")
    check_finite(name, points, "them")
    return points


def check_trainable(samples: Tensor) -> None:
    """Refuse samples, shape (n, d), that have no density to be found.

    Raises:
        ValueError: If they are fewer than 2, or constant in a column.
    """
    if len(samples) < 2:
        raise ValueError(f"A density needs at least 2 samples to train on, got {len(samples)}.")
    column = constant_column(samples)
    if column is not None:
        raise ValueError(
            f"samples are constant in column {column} (= {float(samples[0, column]):g}): what "
            "never varies has no density; leave the column out."
        )
