"""Checks that several metrics share, with messages that name the value and what to do."""

import torch
from torch import Tensor

__all__ = ["check_finite", "check_samples"]


def check_samples(samples: Tensor, reference: Tensor, *, minimum: int = 2) -> None:
    r"""Check that two sets of samples can be compared.

    Args:
        samples: First set, shape :math:`(n, d)`.
        reference: Second set, shape :math:`(m, d)`.
        minimum: Least number of samples in each set.

    Raises:
        TypeError: If a set is no tensor.
        ValueError: If a set is not a matrix, has fewer than `minimum` rows or values that are not
            finite, or if the sets differ in dimension.
    """
    for name, value in (("samples", samples), ("reference", reference)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(value).__name__}: torch.as_tensor({name})."
            )
        if value.ndim != 2 or value.shape[1] == 0:
            raise ValueError(
                f"{name} must have shape (n, d) with d >= 1, got {tuple(value.shape)}; "
                "reshape it to one row per sample."
            )
        if value.shape[0] < minimum:
            raise ValueError(
                f"{name} has {value.shape[0]} rows, but at least {minimum} are needed; "
                "draw more samples."
            )
        check_finite(name, value)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"samples have dimension {samples.shape[1]}, reference has {reference.shape[1]}; "
            "compare samples of the same parameters."
        )


def check_finite(name: str, rows: Tensor) -> None:
    r"""Check that there are numbers only.

    Args:
        name: What the error calls them.
        rows: Shape :math:`(n, *)`.

    Raises:
        ValueError: If a row has values that are not finite.
    """
    finite = torch.isfinite(rows).reshape(len(rows), -1).all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name} has {int((~finite).sum())} rows with NaN or inf out of {len(rows)}; find out "
            "where they come from, and remove them only if that leaves the distribution as it is."
        )
