"""The sum of squares, with a gradient that passes over its argument once.

torch's takes a power of one of it, doubles that and multiplies, each in memory of its own.
"""

from typing import Any

import torch
from torch import Tensor

from .transforms import within_torch_func

__all__ = ["sum_of_squares"]


def sum_of_squares(value: Tensor, dim: int) -> Tensor:
    """Return the sum of squares along a dimension.

    Args:
        value: Any shape.
        dim: What to sum over.

    Returns:
        The shape of ``value`` without this dimension.

    Example:
        >>> sum_of_squares(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), dim=-1)
        tensor([25.,  4.])
    """
    return value.square().sum(dim) if within_torch_func() else _SumOfSquares.apply(value, dim)


class _SumOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(value)
        return value.square().sum(dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return (2 * gradient).unsqueeze(ctx.dim) * value, None
