"""Sensors along a line, some of whose values are missing."""

import torch
from torch import rand, randn, where
from torch.distributions import Independent, Normal

__all__ = ["CODE", "PRIOR", "gaps", "sensors"]

PRIOR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
CODE = -999.0


def gaps(x, share=0.15, code=CODE):
    """Return x with a share of its values missing at random."""
    return where(rand(x.shape) < share, torch.tensor(code), x)


def sensors(theta, num=8, noise=0.1):
    """Two parameters of a line, seen by sensors along it."""
    place = torch.linspace(-1, 1, num)
    return theta[:, :1] + theta[:, 1:] * place + noise * randn(len(theta), num)
