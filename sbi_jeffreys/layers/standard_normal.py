"""What a flow ends at: numbers that are independent and standard normal."""

import math

import torch
from torch import Tensor
from zuko.distributions import DiagNormal

from ..utils.squares import sum_of_squares

__all__ = ["StandardNormal"]


class StandardNormal(DiagNormal):
    r"""The normal distribution of mean zero and scale one, in a third of the operations.

    Args:
        loc: Zeros, shape (d,).
        scale: Ones, shape (d,).

    Example:
        >>> import torch
        >>> normal = StandardNormal(torch.zeros(2), torch.ones(2))
        >>> normal.log_prob(torch.tensor([3.0, 4.0]))
        tensor(-14.3379)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of values (*, d), nats, shape (*)."""
        squares = sum_of_squares(value, -1)
        found = -0.5 * squares - 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))
