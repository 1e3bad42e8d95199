"""The logarithm of a sum of exponentials, where most exponents are far below the largest.

On CPUs that torch's library of vector functions does not favour, an exponential that leaves the
range of float32 takes thirty times as long as one that does not. torch's ``logsumexp`` takes these
exponentials twice, for the value and for the gradient; its ``softmax`` has others.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["logsumexp"]


def logsumexp(value: Tensor, dim: int) -> Tensor:
    """Return the logarithm of the sum of exponentials, as :func:`torch.logsumexp` does.

    Args:
        value: Any shape; finite.
        dim: What to sum over.

    Returns:
        The shape of ``value`` without this dimension.

    Example:
        >>> value = torch.tensor([[0.0, -1e5], [3.0, 2.0]])
        >>> torch.allclose(logsumexp(value, 0), value.logsumexp(0))
        True
    """
    return _LogSumExp.apply(value, dim)


class _LogSumExp(torch.autograd.Function):
    # For every k it is v_k - log softmax(v)_k; the largest k is the one that loses no digits.
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int) -> Tensor:
        shares = value.softmax(dim)
        ctx.dim = dim
        ctx.save_for_backward(value, shares)
        return value.amax(dim) - shares.amax(dim).log_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        value, shares = ctx.saved_tensors
        if torch.is_grad_enabled():
            # To be differentiated again.
            shares = value.softmax(ctx.dim)
        return gradient.unsqueeze(ctx.dim) * shares, None
