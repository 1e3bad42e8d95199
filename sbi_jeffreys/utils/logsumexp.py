"""The logarithm of a sum of exponentials, where most exponents are far below the largest.

On a CPU an exponential that leaves the range of float32 takes thirty times as long as one that does
not, and a product that does so ten times as long. torch's ``logsumexp`` takes such exponentials
twice, for the value and for the gradient, which is then multiplied with others like it. Here they
are zero where they no longer change the sum. On a GPU, where the number of operations counts, there
are half as many of them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import within_torch_func

__all__ = ["log_softmax", "logsumexp"]


def logsumexp(value: Tensor, dim: int) -> Tensor:
    """Return the logarithm of the sum of exponentials, as :func:`torch.logsumexp` does.

    Args:
        value: Any shape, single or double precision.
        dim: What to sum over, not empty.

    Returns:
        The shape of ``value`` without this dimension. A GPU has the lowest number that there is
        where all are minus infinity, and NaN where one is infinity.

    Example:
        >>> value = torch.tensor([[0.0, -1e5], [3.0, 2.0]])
        >>> torch.allclose(logsumexp(value, 0), value.logsumexp(0))
        True
    """
    return value.logsumexp(dim) if within_torch_func() else _LogSumExp.apply(value, dim)


def log_softmax(value: Tensor, dim: int) -> Tensor:
    """Return the logarithms of shares, as :func:`torch.log_softmax` does.

    On a CPU torch takes three times as long where the last dimension, over which is summed, is
    short.

    Args:
        value: Any shape, single or double precision.
        dim: What to sum over, not empty.

    Returns:
        The shape of ``value``.
    """
    by_torch = value.is_cuda or within_torch_func()
    return value.log_softmax(dim) if by_torch else _LogSoftmax.apply(value, dim)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        summed = _on_gpu if value.is_cuda else _on_cpu
        found, shares = summed(value, dim)
        ctx.save_for_backward(value, shares)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.unsqueeze(ctx.dim) * _shares(ctx), None


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        _, relative, shares, total = _relative(value, dim)
        ctx.save_for_backward(value, shares.div_(total))
        return relative.sub_(total.log_())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient - gradient.sum(ctx.dim, keepdim=True) * _shares(ctx), None


def _shares(ctx: Any) -> Tensor:
    """Return the shares that were saved; made anew, where they are to be differentiated again."""
    value, shares = ctx.saved_tensors
    return value.softmax(ctx.dim) if torch.is_grad_enabled() else shares


def _on_cpu(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the logarithm, and the shares, which are its gradient."""
    largest, _, shares, total = _relative(value, dim)
    shares.div_(total)
    return (largest + total.log_()).squeeze(dim), shares


def _on_gpu(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    # For every k it is v_k - log softmax(v)_k; the largest k is the one that loses no digits.
    value = value.clamp_min(torch.finfo(value.dtype).min)
    logs = value.log_softmax(dim)
    return value.amax(dim) - logs.amax(dim), logs.exp()


def _relative(value: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Return the largest, all relative to it, their exponentials and the sum of these."""
    kind = torch.finfo(value.dtype)
    # As a number, so that differences are numbers, too.
    largest = value.amax(dim, keepdim=True).clamp_(kind.min, kind.max)
    relative = value - largest
    # A million of what is left out are no digit of the sum, and products of two are in range.
    least = kind.eps**2
    exponentials = relative.clamp_min(math.log(least)).exp_()
    F.threshold(exponentials, 2 * least, 0.0, inplace=True)
    return largest, relative, exponentials, exponentials.sum(dim, keepdim=True)
