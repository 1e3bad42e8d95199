"""Series, spectra and images of many entries, along few of whose directions parameters move them.

Written while principal components were tried (:mod:`sbi_jeffreys.selection.components`), with seeds
4 and 5.
"""

import torch
from torch import Tensor, randn
from torch.distributions import Gamma

from .base import Simulator, box

__all__ = ["SERIES"]


def oscillation(theta: Tensor, points: int = 100) -> Tensor:
    """Return 100 points of a damped oscillation in noise: frequency, damping, amplitude."""
    frequency, damping, amplitude = theta.split(1, dim=1)
    time = torch.linspace(0, 8, points)
    signal = amplitude * torch.exp(-damping * time) * torch.cos(frequency * time)
    return signal + 0.3 * randn(len(theta), points)


def long_oscillation(theta: Tensor) -> Tensor:
    """Return the same at 1,000 points."""
    return oscillation(theta, 1000)


def spectrum(theta: Tensor) -> Tensor:
    """Return counts in 100 channels: a background, and a line's height, place and width."""
    background, height, place, width = theta.split(1, dim=1)
    distance = (torch.linspace(0, 10, 100) - place) / width
    return torch.poisson(background + height * torch.exp(-0.5 * distance**2))


def epidemic(theta: Tensor) -> Tensor:
    """Return overdispersed cases of 60 days: rates of infection and recovery, share reported."""
    infection, recovery, reported = theta.T
    healthy, ill, cases = torch.full_like(infection, 9990.0), torch.full_like(infection, 10.0), []
    for _ in range(60):
        new = infection * healthy * ill / 10_000
        healthy = (healthy - new).clamp_min(0)
        ill = (ill + new - recovery * ill).clamp_min(0)
        gain = Gamma(10.0, 10.0).sample((len(theta),))
        cases.append(torch.poisson((reported * new).clamp_min(1e-3) * gain))
    return torch.stack(cases, dim=1)


def bump_on_drift(theta: Tensor) -> Tensor:
    """Return 100 points of a bump on a wandering baseline: height and place."""
    height, place = theta.split(1, dim=1)
    bump = height * torch.exp(-0.5 * ((torch.linspace(0, 1, 100) - place) / 0.05) ** 2)
    return bump + 0.1 * randn(len(theta), 100).cumsum(dim=1) + 0.1 * randn(len(theta), 100)


def spot(theta: Tensor) -> Tensor:
    """Return an image of 16 by 16 with a spot in noise: both coordinates and size."""
    across, down, size = (each[..., None] for each in theta.split(1, dim=1))
    grid = torch.linspace(-1.5, 1.5, 16)
    distance = (grid[:, None] - across) ** 2 + (grid - down) ** 2
    return (torch.exp(-0.5 * distance / size**2) + 0.5 * randn(len(theta), 16, 16)).flatten(1)


_OSCILLATION = box([0.5, 0.05, 0.2], [3.0, 1.0, 2.0])

SERIES = {
    "oscillation": Simulator(_OSCILLATION, oscillation),
    "long_oscillation": Simulator(_OSCILLATION, long_oscillation),
    "spectrum": Simulator(box([1, 5, 2, 0.3], [10, 50, 8, 1.5]), spectrum),
    "epidemic": Simulator(box([0.1, 0.05, 0.1], [0.6, 0.3, 1.0]), epidemic),
    "bump_on_drift": Simulator(box([0.5, 0.1], [3.0, 0.9]), bump_on_drift),
    "spot": Simulator(box([-1, -1, 0.1], [1, 1, 0.5]), spot),
}
