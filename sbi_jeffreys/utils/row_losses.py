"""Losses at held-out rows: what tells models apart, and how far a few rows can be trusted."""

import math

import torch
from scipy.stats import norm, t
from torch import Tensor

__all__ = ["bounded", "is_sure", "lowest", "mean_and_error", "surest"]

# Interquartile ranges above the median beyond which a row's loss counts no further: five standard
# deviations of a Gaussian. Of fewer rows, of which one stands for more, in proportion more.
_SPREADS, _ROWS = 4.0, 30
# Where quantiles of Student's distribution and of a Gaussian are compared.
_LAST = 0.99


def bounded(losses: Tensor) -> Tensor:
    """Return losses (n,), none of which is above the median by more than four interquartile ranges.

    The loss at one x far from all others may move by tens of nats from epoch to epoch, and the mean
    of a hundred rows would tell of nothing else. One of ten rows is another matter: it may be as
    common as that, and the bound is three times as high.
    """
    ordered, last = losses.sort().values, len(losses) - 1
    low, median, high = (ordered[round(share * last)] for share in (0.25, 0.5, 0.75))
    spreads = _SPREADS * max(1.0, _ROWS / len(losses))
    # Of data in levels most may be the same. No branch: what is recorded comes by here.
    highest = torch.where(high > low, median + spreads * (high - low), ordered[-1])
    return torch.minimum(losses, highest)


def mean_and_error(gains: Tensor) -> tuple[float, float]:
    """Return the mean of gains (n,) and its standard error, of a single row infinite."""
    error = gains.std().item() / len(gains) ** 0.5 if len(gains) > 1 else math.inf
    return gains.mean().item(), error


def is_sure(gains: Tensor) -> bool:
    """Whether the mean of gains (n,) is above its standard error; no single row is sure.

    Few rows know little of that error, and two that happen to gain alike nothing. So it counts for
    more, as much as the last hundredth of Student's distribution is farther out than a Gaussian's:
    14 times with two rows, 2 with four, 1.2 with ten.

    References:
        The probable error of a mean (Student, 1908), https://doi.org/10.1093/biomet/6.1.1
    """
    num = len(gains)
    if num < 2:
        return False
    mean, error = mean_and_error(gains)
    return not mean <= error * float(t.ppf(_LAST, num - 1) / norm.ppf(_LAST))


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
