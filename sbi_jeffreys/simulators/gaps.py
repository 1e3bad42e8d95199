"""Data with missing values, which a code far from all others stands for."""

import torch
from torch import Tensor, rand, randn

from .base import Simulator, box, normal

__all__ = ["GAPS"]


def lost_nights(theta: Tensor) -> Tensor:
    """Return 100 nights of a star behind which a lens passes, every eighth lost (99 magnitudes).

    Peak, logarithm of the time scale, brightness and least distance (Paczynski, 1986).
    """
    peak, scale, brightness, least = theta.split(1, dim=1)
    distance = torch.hypot(least, (torch.linspace(-50, 50, 100) - peak) / scale.exp())
    factor = (distance**2 + 2) / (distance * torch.hypot(distance, torch.tensor(2.0)))
    seen = brightness - 2.5 * factor.log10() + 0.05 * randn(len(theta), 100)
    return seen.where(rand(seen.shape) > 0.125, 99.0)


def stations(theta: Tensor) -> Tensor:
    """Return a field at 12 places, a fifth of them silent (-999), and how many there are."""
    place = torch.linspace(-1, 1, 12)
    level, slope, bend = theta.split(1, dim=1)
    field = level + slope * place + bend * place**2 + 0.3 * randn(len(theta), 12)
    silent = rand(field.shape) < 0.2
    return torch.cat((field.where(~silent, -999.0), (~silent).sum(dim=1, keepdim=True)), dim=1)


def upper_limits(theta: Tensor) -> Tensor:
    """Return the fluxes of a source in ten bands, -99 where it was too faint: amplitude, index."""
    amplitude, index = theta.split(1, dim=1)
    flux = (amplitude + index * torch.linspace(-1, 1, 10)).exp()
    seen = flux * (1 + 0.1 * randn(flux.shape)) + 0.2 * randn(flux.shape)
    return seen.where(seen > 0.6, -99.0)


GAPS = {
    "lost_nights": Simulator(box([-40, 1, 14, 0.05], [40, 3, 20, 1.2]), lost_nights),
    "stations": Simulator(normal(3), stations),
    "upper_limits": Simulator(box([-2, -2], [2, 2]), upper_limits),
}
