"""One kind of difficulty each: heavy tails, counts, many modes, no noise, no information."""

import math

import torch
from sbi.utils import MultipleIndependent
from torch import Tensor, rand, randn
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Independent,
    LogNormal,
    Normal,
    StudentT,
)

from .base import Simulator, box, normal

__all__ = ["DIFFICULTIES"]


def ornstein_uhlenbeck(theta: Tensor) -> Tensor:
    """Return a path of 50 points: rate, mean and noise of a process that returns to its mean."""
    rate, mean, noise = theta.T
    path = [theta.new_zeros(len(theta))]
    for _ in range(50):
        drift = 0.2 * rate * (mean - path[-1])
        path.append(path[-1] + drift + math.sqrt(0.2) * noise * randn(len(theta)))
    return torch.stack(path[1:], dim=1)


def queue(theta: Tensor) -> Tensor:
    """Return quartiles of 50 departure intervals of an M/G/1 queue (Heggland, Frigessi, 2004)."""
    shortest, width, rate = theta.T[..., None]
    service = shortest + width * rand(len(theta), 50)
    arrivals = (-rand(len(theta), 50).log() / rate).cumsum(dim=1)
    departures = [theta.new_zeros(len(theta))]
    for done, arrived in zip(service.T, arrivals.T, strict=True):
        departures.append(done + torch.maximum(arrived, departures[-1]))
    intervals = torch.stack(departures, dim=1).diff(dim=1)
    return intervals.quantile(torch.linspace(0, 1, 5), dim=1).T


def g_and_k(theta: Tensor) -> Tensor:
    """Return nine quantiles of a hundred draws of a g-and-k distribution (Rayner et al., 2002)."""
    location, scale, g, k = theta.T[..., None]
    z = randn(len(theta), 100)
    draws = location + scale * (1 + 0.8 * torch.tanh(g * z / 2)) * (1 + z**2) ** k * z
    return draws.quantile(torch.linspace(0.05, 0.95, 9), dim=1).T


def angles(theta: Tensor) -> Tensor:
    """Return twenty sorted cosines of scattering angles with a forward-backward asymmetry."""
    grid = torch.linspace(-1, 1, 201)
    density = 1 + grid**2 + 0.5 * theta * grid
    return grid[Categorical(density).sample(torch.Size((20,))).T].sort(dim=1).values


def squares(theta: Tensor) -> Tensor:
    """Return squares of five parameters, with noise: 32 modes."""
    return theta**2 + 0.1 * randn(theta.shape)


def linear_20(theta: Tensor) -> Tensor:
    """Return twenty linear combinations of twenty parameters, with noise."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(20, 20, generator=generator) / math.sqrt(20)
    return theta @ mixing + 0.3 * randn(theta.shape)


def positive(theta: Tensor) -> Tensor:
    """Return a product, a log ratio and a log-normal: parameters without an upper bound."""
    a, b, c = theta.T
    noise = randn(3, len(theta))
    columns = (a * b + 0.1 * noise[0], (a / b).log() + 0.1 * noise[1], c * (0.2 * noise[2]).exp())
    return torch.stack(columns, dim=1)


def poisson(theta: Tensor) -> Tensor:
    """Return twelve counts whose log rates are linear: from zero to thousands."""
    return torch.poisson(torch.exp(theta[:, :1] + theta[:, 1:] * torch.linspace(-1, 1, 12)))


def cauchy(theta: Tensor) -> Tensor:
    """Return two parameters, four times each, with noise that has no mean."""
    return theta.repeat(1, 4) + 0.1 * Cauchy(0.0, 1.0).sample(torch.Size((len(theta), 8)))


def bits(theta: Tensor) -> Tensor:
    """Return three bits, which say little."""
    return torch.bernoulli(torch.sigmoid(theta @ torch.tensor([[1.0, 2, -1], [0, 1, 3]])))


def image(theta: Tensor) -> Tensor:
    """Return a noisy 10 x 10 image of a spot: position and brightness."""
    grid = torch.linspace(-1, 1, 10)
    column, row, brightness = theta.T[..., None, None]
    distance = (grid - column) ** 2 + (grid[:, None] - row) ** 2
    spot = brightness * torch.exp(-distance / (2 * 0.2**2))
    return (spot + 0.2 * randn(spot.shape)).flatten(1)


def wave(theta: Tensor) -> Tensor:
    """Return a sine of one parameter: two modes."""
    return 2 * theta.sin() + 0.2 * randn(theta.shape)


def without_noise(theta: Tensor) -> Tensor:
    """Return sum and product of two parameters: a posterior of two points."""
    return torch.stack((theta.sum(dim=1), theta.prod(dim=1)), dim=1)


def uninformative(theta: Tensor) -> Tensor:
    """Return noise alone: the posterior is the prior."""
    return randn(len(theta), 3)


def spiral(theta: Tensor) -> Tensor:
    """Return a point near to a spiral."""
    angle = 4 * theta[:, :1]
    return torch.cat((angle * angle.cos(), angle * angle.sin()), dim=1) + 0.15 * randn(
        len(theta), 2
    )


def mixed_types(theta: Tensor) -> Tensor:
    """Return a bit, a count and a real number."""
    bit = torch.bernoulli(torch.sigmoid(3 * theta[:, :1]))
    count = torch.poisson(torch.exp(1 + theta[:, 1:]))
    return torch.cat((bit, count, theta.sum(dim=1, keepdim=True) + 0.3 * randn(len(theta), 1)), 1)


def growth(theta: Tensor) -> Tensor:
    """Return an exponentially growing population at eight times, with log-normal noise."""
    log_size = 2 * theta[:, :1] + theta[:, 1:] * torch.linspace(0, 5, 8)
    return torch.exp(log_size + 0.3 * randn(len(theta), 8))


def banana(theta: Tensor) -> Tensor:
    """Return two mixed columns, one of them with the square of a parameter."""
    columns = torch.stack((theta[:, 0], theta[:, 1] + theta[:, 0] ** 2), dim=1)
    return (columns + 0.1 * randn(theta.shape)) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])


def student(theta: Tensor) -> Tensor:
    """Return thirty draws with two degrees of freedom, of unknown location and log scale."""
    draws = StudentT(2.0).sample(torch.Size((len(theta), 30)))
    return theta[:, :1] + theta[:, 1:].exp() * draws


def binomial(theta: Tensor) -> Tensor:
    """Return two counts of twenty: the posterior is a product of two Beta densities."""
    return Binomial(20, theta).sample()


def switching(theta: Tensor) -> Tensor:
    """Return ten draws of a mixture whose two means nothing tells apart."""
    first = Bernoulli(0.5).sample(torch.Size((len(theta), 10)))
    means = torch.where(first > 0, theta[:, :1], theta[:, 1:])
    return means + 0.3 * randn(len(theta), 10)


def signs(theta: Tensor) -> Tensor:
    """Return every parameter with a random sign and noise: 32 modes of x, one of theta."""
    return theta * (1 - 2 * Bernoulli(0.5).sample(theta.shape)) + 0.1 * randn(theta.shape)


def rings(theta: Tensor) -> Tensor:
    """Return three points at random angles, of unknown distance and spread."""
    angle = 2 * math.pi * rand(len(theta), 3)
    distance = theta[:, :1] + theta[:, 1:] * randn(len(theta), 3)
    return torch.cat((distance * angle.cos(), distance * angle.sin()), dim=1)


def codes(theta: Tensor) -> Tensor:
    """Return six categories as codes, whose order means nothing."""
    centres = torch.linspace(-2, 2, 10)
    category = Categorical(logits=-3 * (theta.unsqueeze(-1) - centres) ** 2).sample((3,))
    code = torch.tensor([3, 7, 0, 5, 9, 1, 8, 2, 6, 4])
    return code[category].movedim(0, 1).flatten(1).float()


def phases(theta: Tensor) -> Tensor:
    """Return twenty points of a noisy wave: amplitude, frequency, noise, and a phase unknown."""
    amplitude, frequency, noise = theta.T.unsqueeze(-1)
    phase = 2 * math.pi * rand(len(theta), 1)
    wave = amplitude * torch.sin(frequency * torch.linspace(0, 6, 20) + phase)
    return wave + noise * randn(len(theta), 20)


def _one(value: float) -> Tensor:
    return torch.tensor([float(value)])


DIFFICULTIES = {
    "ornstein_uhlenbeck": Simulator(box([0.1, -2, 0.1], [2, 2, 1]), ornstein_uhlenbeck),
    "queue": Simulator(box([0, 0.1, 0.05], [5, 5, 0.5]), queue),
    "g_and_k": Simulator(box([0, 0.1, 0, 0], [10, 5, 5, 0.5]), g_and_k),
    "angles": Simulator(box([-2], [2]), angles),
    "squares": Simulator(box([-1] * 5, [1] * 5), squares),
    "linear_20": Simulator(normal(20), linear_20),
    "positive": Simulator(
        MultipleIndependent(
            [Gamma(_one(2), _one(1)), LogNormal(_one(0), _one(1)), Exponential(_one(1))]
        ),
        positive,
    ),
    "poisson": Simulator(
        Independent(Normal(torch.tensor([1.0, 0.0]), torch.tensor([1.5, 1.0])), 1), poisson
    ),
    "cauchy": Simulator(box([-3, -3], [3, 3]), cauchy),
    "bits": Simulator(normal(2), bits),
    "image": Simulator(box([-1, -1, 0.2], [1, 1, 2]), image),
    "wave": Simulator(box([-3], [3]), wave),
    "without_noise": Simulator(box([-1, -1], [1, 1]), without_noise),
    "uninformative": Simulator(box([-1, -1], [1, 1]), uninformative),
    "spiral": Simulator(box([0.2], [3]), spiral),
    "mixed_types": Simulator(normal(2), mixed_types),
    "growth": Simulator(box([-1, -0.5], [1, 1]), growth),
    "banana": Simulator(normal(2), banana),
    "student": Simulator(box([-5, -2], [5, 1]), student),
    "binomial": Simulator(
        MultipleIndependent([Beta(_one(0.5), _one(0.5)), Beta(_one(2), _one(5))]), binomial
    ),
    "switching": Simulator(box([-3, -3], [3, 3]), switching),
    "signs": Simulator(box([0] * 5, [1] * 5), signs),
    "rings": Simulator(box([1, 0.05], [5, 0.5]), rings),
    "codes": Simulator(box([-2, -2], [2, 2]), codes),
    "phases": Simulator(box([0.5, 1, 0.2], [3, 4, 1]), phases),
}
