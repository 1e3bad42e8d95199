"""What users bring as numbers: tensors and arrays of any real type, as float32."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.warn import warn

__all__ = ["as_float", "as_tensor", "check_resolution"]

# Rows in which digits that float32 loses are looked for, and the share of a column's standard
# deviation that rounding may move a value by.
_ROWS, _LOST = 1000, 1e-3
# Standard deviations of normal numbers in their median distance from the median; how many of them
# away rows count.
_OF_NORMAL, _NEAR = 1.4826, 30.0
# Types all of whose values float32 holds.
_HELD = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
)


def as_tensor(name: str, values: Any) -> Tensor:
    """Return real numbers as a dense tensor without gradient, of the type that they have.

    Args:
        name: What they are called in messages.
        values: A tensor, or a numpy array of any byte order and strides, read-only or not.

    Raises:
        TypeError: If values are no tensor or array, are complex, sparse, nested or masked, or no
            numbers.
    """
    if isinstance(values, np.ndarray):
        values = _from_numpy(name, values)
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name} must be a torch tensor or a numpy array, got {type(values).__name__}."
        )
    if values.is_nested or values.layout != torch.strided or values.is_quantized:
        raise TypeError(f"{name} is a sparse, nested or quantized tensor: pass a dense one.")
    if values.is_complex():
        raise TypeError(f"{name} is complex; stack its real and imaginary parts instead.")
    return values.detach()


def _from_numpy(name: str, values: np.ndarray) -> Tensor:
    """Return an array as a tensor: of its own memory where torch can have it, else of a copy."""
    if np.ma.is_masked(values):
        raise TypeError(
            f"{name} is a numpy array with masked entries, which a tensor has not. Pass "
            f"{name}.filled(np.nan), or leave those rows out: rows of x with NaN are excluded. Or "
            "fill in a code far from all values of x, like -999: the default flow takes it for a "
            "missing value."
        )
    if values.dtype.kind not in "biufc":
        raise TypeError(f"{name} is a numpy array of {values.dtype}: pass {name}.astype(float).")
    # torch knows one byte order, and no floats beyond double precision.
    long = values.dtype.kind == "f" and values.dtype.itemsize > 8
    native = np.dtype(np.float64) if long else values.dtype.newbyteorder("=")
    # Nor negative strides, and it warns of memory that must not be written.
    return torch.from_numpy(np.require(values, native, ["C", "W"]))


def as_float(name: str, values: Any) -> Tensor:
    """Return real numbers of any type as a float32 tensor; arguments and errors as above."""
    return as_tensor(name, values).to(torch.float32)


def check_resolution(name: str, values: Tensor, rounded: Tensor) -> None:
    """Say so where float32 cannot hold the values, or not what tells them apart.

    Args:
        name: What they are called in messages.
        values: Numbers of any type, shape (n, ...).
        rounded: The same as float32.

    Raises:
        ValueError: If finite values are beyond its range.
    """
    if values.dtype in _HELD or not values.numel():
        return
    if bool((rounded.isinf() & values.isfinite()).any()):
        raise ValueError(
            f"{name} holds values of up to {values.abs().max().item():.3g}, beyond the range of "
            "float32, in which models are trained: give it another unit."
        )
    # Rows enough to tell, columns last.
    values, rounded = values[:_ROWS].double(), rounded[:_ROWS].double()
    error = (values - rounded).abs().nan_to_num(nan=0.0)
    # NaN says nothing of the spread of the others.
    numbers = values.masked_fill(values.isinf(), torch.nan)
    values = torch.where(numbers.isnan(), numbers.nanmedian(dim=0).values, numbers)
    varies = (values != values[0]).any(dim=0)
    away = (values - values.median(dim=0).values).abs()
    # Codes of missing values and far rows say nothing of it either.
    spread = away.masked_fill(away == 0, torch.nan).nanmedian(dim=0).values.nan_to_num(nan=0.0)
    spread = torch.minimum(values.std(dim=0, correction=0), _OF_NORMAL * spread)
    error = error.masked_fill(away > _NEAR * spread, 0.0).amax(dim=0)
    lost = varies & (error > _LOST * spread)
    if bool(lost.any()):
        column = int(lost.flatten().nonzero()[0])
        warn(
            f"{name} loses digits that matter in column {column}: models are trained in float32, "
            f"which rounds its values by up to {error.flatten()[column].item():.2g}. Subtract an "
            "offset from it first."
        )
