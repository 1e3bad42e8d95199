"""Losses at held-out rows: what tells models apart, and how far a few rows can be trusted."""

import math

import torch
from torch import Tensor

__all__ = ["bounded", "lowest", "mean_and_error", "surest"]

# Interquartile ranges above the median beyond which a row's loss counts no further: five standard
# deviations of a Gaussian.
_SPREADS = 4.0


def bounded(losses: Tensor) -> Tensor:
    """Return losses (n,), none of which is above the median by more than four interquartile ranges.

    The loss at one x far from all others may move by tens of nats from epoch to epoch, and the mean
    of a hundred rows would tell of nothing else.
    """
    ordered, last = losses.sort().values, len(losses) - 1
    low, median, high = (ordered[round(share * last)] for share in (0.25, 0.5, 0.75))
    # Of data in levels most may be the same. No branch: what is recorded comes by here.
    highest = torch.where(high > low, median + _SPREADS * (high - low), ordered[-1])
    return torch.minimum(losses, highest)


def mean_and_error(gains: Tensor) -> tuple[float, float]:
    """Return the mean of gains (n,) and its standard error, of a single row infinite."""
    error = gains.std().item() / len(gains) ** 0.5 if len(gains) > 1 else math.inf
    return gains.mean().item(), error


def lowest(losses: Tensor, weights: Tensor | float = 1.0) -> int:
    """Return which model has the lowest mean loss, with outliers bounded.

    Args:
        losses: Losses of models on the same rows, shape (W, n). One row tells nothing.
        weights: Weights of the rows, shape (n,).
    """
    if losses.shape[1] < 2:
        return 0
    return int(_bounded_rows(losses, weights).mean(dim=1).nan_to_num(nan=math.inf).argmin())


def surest(losses: Tensor, weights: Tensor | float = 1.0) -> int:
    """Return which model gains most on the first, less the gain's standard error.

    Args:
        losses: Losses of models on the same rows, shape (W, n). One row tells nothing.
        weights: Weights of the rows, shape (n,).
    """
    num = losses.shape[1]
    if num < 2:
        return 0
    losses = _bounded_rows(losses, weights)
    gains = losses[0] - losses
    # NaN is no gain.
    sure = (gains.mean(dim=1) - gains.std(dim=1) / num**0.5).nan_to_num(nan=-math.inf)
    return int(sure.argmax())


def _bounded_rows(losses: Tensor, weights: Tensor | float) -> Tensor:
    # Bounded first: where few rows have weight, the others must not say what is far.
    return weights * torch.stack([bounded(row) for row in losses])
