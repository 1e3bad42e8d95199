"""Columns of noise beside those that say something of theta."""

import torch
from torch import Tensor, randn

__all__ = ["NOISE", "among_noise"]

NOISE = 30


def among_noise(theta: Tensor, *x: Tensor) -> tuple[Tensor, Tensor]:
    """Return theta (n, d), and what says something of it beside thirty columns that do not."""
    return theta, torch.cat((*x, randn(len(theta), NOISE)), dim=1)
