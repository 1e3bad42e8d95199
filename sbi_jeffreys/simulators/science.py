"""What sciences simulate: populations, neurons, spectra, surveys, clinical and epidemic data.

Written before any method had been run on them, and left as they were after.
"""

import math

import torch
from torch import Tensor, rand, randn
from torch.distributions import Gamma, Multinomial

from .base import Simulator, box, normal

__all__ = ["SCIENCE"]


def ricker(theta: Tensor) -> Tensor:
    """Return 20 counts of a chaotic population: log growth, its noise, share seen (Wood, 2010)."""
    log_growth, noise, seen = theta.T
    size, counts = torch.ones(len(theta)), []
    for year in range(25):
        size = log_growth.exp() * size * torch.exp(-size + noise * randn(len(theta)))
        size = size.clamp(0, 1e6)
        if year >= 5:
            counts.append(torch.poisson(seen * size))
    return torch.stack(counts, dim=1)


def moving_average(theta: Tensor) -> Tensor:
    """Return 50 points of a moving average of second order."""
    noise = randn(len(theta), 52)
    return noise[:, 2:] + theta[:, :1] * noise[:, 1:-1] + theta[:, 1:] * noise[:, :-2]


def fitzhugh_nagumo(theta: Tensor) -> Tensor:
    """Return 30 noisy voltages of a spiking neuron: two shapes, slowness, current."""
    a, b, slowness, current = theta.T
    v, w = torch.full((len(theta),), -1.0), torch.full((len(theta),), -0.5)
    seen = []
    for step in range(600):
        dv, dw = v - v**3 / 3 - w + current, (v + a - b * w) / slowness
        v, w = v + 0.1 * dv, w + 0.1 * dw
        if step % 20 == 19:
            seen.append(v)
    return torch.stack(seen, dim=1) + 0.2 * randn(len(theta), 30)


def survival(theta: Tensor) -> Tensor:
    """Return 20 sorted times to failure, censored at three: log shape and scale of a Weibull."""
    shape, scale = theta.exp().split(1, dim=1)
    times = scale * (-rand(len(theta), 20).clamp(1e-6, 1 - 1e-6).log()) ** (1 / shape)
    return times.clamp(max=3.0).sort(dim=1).values


def chirp(theta: Tensor) -> Tensor:
    """Return 64 points of a rising tone in noise: amplitude, frequency, its rise, phase."""
    amplitude, frequency, rise, phase = theta.split(1, dim=1)
    time = torch.linspace(0, 1, 64)
    angle = 2 * math.pi * (frequency * time + rise * time**2) + phase
    return amplitude * torch.sin(angle) + 0.5 * randn(len(theta), 64)


def hierarchy(theta: Tensor) -> Tensor:
    """Return two measurements of each of five groups: mean, log spread and the groups' scores."""
    means = theta[:, :1] + theta[:, 1:2].exp() * theta[:, 2:]
    return torch.cat([means + 0.5 * randn(len(theta), 5) for _ in range(2)], dim=1)


def logistic_growth(theta: Tensor) -> Tensor:
    """Return 12 overdispersed counts of a growing colony: rate, log capacity, log first size."""
    rate, capacity, first = theta[:, :1], theta[:, 1:2].exp(), theta[:, 2:].exp()
    mean = capacity / (1 + (capacity / first - 1) * torch.exp(-rate * torch.linspace(0, 10, 12)))
    return torch.poisson(Gamma(5.0, 5.0 / mean.clamp_min(1e-3)).sample())


def pharmacokinetics(theta: Tensor) -> Tensor:
    """Return 8 concentrations after a dose: log rates of uptake and of loss, log volume."""
    uptake, loss, volume = theta.exp().split(1, dim=1)
    uptake = uptake + 1e-3
    time = torch.tensor([0.25, 0.5, 1, 2, 4, 6, 9, 12])
    difference = torch.exp(-loss * time) - torch.exp(-uptake * time)
    found = 10 * uptake / (volume * (uptake - loss + 1e-4)) * difference
    return found.abs() * torch.exp(0.15 * randn(len(theta), 8)) + 1e-4


def two_decays(theta: Tensor) -> Tensor:
    """Return 15 counts of a sum of two decays: log amplitude and log rate of each."""
    first, rate, second, other = theta.exp().split(1, dim=1)
    time = torch.linspace(0, 3, 15)
    return torch.poisson(50 * (first * torch.exp(-rate * time) + second * torch.exp(-other * time)))


def stable(theta: Tensor) -> Tensor:
    """Return 30 sorted draws of a symmetric stable law (Chambers, 1976): index, log scale."""
    index, scale = theta[:, :1], theta[:, 1:].exp()
    angle = (rand(len(theta), 30) - 0.5) * math.pi * 0.999
    waited = -rand(len(theta), 30).clamp_min(1e-6).log()
    tail = (torch.cos(angle * (1 - index)) / waited) ** ((1 - index) / index)
    return (scale * torch.sin(index * angle) / angle.cos() ** (1 / index) * tail).sort(1).values


def changepoint(theta: Tensor) -> Tensor:
    """Return 40 points whose mean jumps once: both means, the time, log noise."""
    before, after, when, noise = theta.split(1, dim=1)
    mean = torch.where(torch.arange(40.0) + 0.5 < when, before, after)
    return mean + noise.exp() * randn(len(theta), 40)


def colours(theta: Tensor) -> Tensor:
    """Return magnitudes in five bands, much as of a black body: redshift, temperature, luminosity.

    (Of one, the first term in the wavelength has the other sign. Reports are of these.)
    """
    redshift, temperature, magnitude = theta.split(1, dim=1)
    emitted = torch.tensor([0.35, 0.48, 0.62, 0.77, 0.91]) / (1 + redshift)
    planck = 1 / (torch.exp(1.44 / (emitted * temperature)) - 1)
    dimmed = magnitude - 12.5 * emitted.log10() - 2.5 * planck.log10()
    return dimmed + 5 * torch.log10(redshift + 0.01) + 0.05 * randn(len(theta), 5)


def covariance(theta: Tensor) -> Tensor:
    """Return 20 pairs: the logarithms of both deviations, and their correlation."""
    a, b = randn(2, len(theta), 20)
    first, second, rho = theta[:, :1].exp(), theta[:, 1:2].exp(), theta[:, 2:]
    pairs = (first * a, second * (rho * a + (1 - rho**2).sqrt() * b))
    return torch.stack(pairs, dim=2).flatten(1)


def directions(theta: Tensor) -> Tensor:
    """Return cosines and sines of six noisy directions: their mean angle, log concentration."""
    angles = theta[:, :1] + randn(len(theta), 6) / theta[:, 1:].exp().sqrt()
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def multinomial(theta: Tensor) -> Tensor:
    """Return how often each of six categories was chosen, of thirty times: five logits."""
    logits = torch.cat((theta, torch.zeros(len(theta), 1)), dim=1)
    return Multinomial(30, logits=logits).sample()


_RESPONSE = torch.randn(10, 50, generator=torch.Generator().manual_seed(1)) / 3


def saturation(theta: Tensor) -> Tensor:
    """Return 50 saturating responses to mixtures of ten stimuli, with noise."""
    return torch.tanh(theta @ _RESPONSE) + 0.3 * randn(len(theta), 50)


def four_moons(theta: Tensor) -> Tensor:
    """Return two moons twice: four parameters, four modes (Greenberg et al., 2019)."""
    a, b, c, d = theta.split(1, dim=1)
    return torch.cat((_moon(a, b), _moon(c, d)), dim=1)


def _moon(a: Tensor, b: Tensor) -> Tensor:
    angle, radius = math.pi * (rand(len(a), 1) - 0.5), 0.1 + 0.01 * randn(len(a), 1)
    bent = torch.cat((radius * angle.cos() + 0.25, radius * angle.sin()), dim=1)
    return bent + torch.cat((-(a + b).abs(), b - a), dim=1) / math.sqrt(2)


def funnel(theta: Tensor) -> Tensor:
    """Return four numbers of one unknown log scale, with noise (Neal, 2003)."""
    return theta[:, 1:] * theta[:, :1].exp() + 0.3 * randn(len(theta), 4)


def detection_limit(theta: Tensor) -> Tensor:
    """Return 15 measurements, none below zero: mean and log deviation."""
    return (theta[:, :1] + theta[:, 1:].exp() * randn(len(theta), 15)).clamp_min(0.0)


def seir(theta: Tensor) -> Tensor:
    """Return 12 reported weeks of an epidemic: contact, recovery, incubation, share reported."""
    contact, recovery, incubation, reported = theta.T
    S, E, I = (torch.full((len(theta),), size) for size in (990.0, 5.0, 5.0))
    week, weeks = torch.zeros(len(theta)), []
    for step in range(300):
        infected, ill, well = contact * S * I / 5000, incubation * E / 5, recovery * I / 5
        S, E, I = S - infected, E + infected - ill, I + ill - well
        week = week + ill
        if step % 25 == 24:
            weeks.append(torch.poisson((reported * week).clamp_min(0.0)))
            week = torch.zeros(len(theta))
    return torch.stack(weeks, dim=1)


def jumps(theta: Tensor) -> Tensor:
    """Return two numbers, each moved by one up or down: four modes of x."""
    return theta + torch.sign(rand(len(theta), 2) - 0.3) + 0.1 * randn(len(theta), 2)


def crossings(theta: Tensor) -> Tensor:
    """Return the length and the product of two numbers: where a circle meets a hyperbola."""
    seen = torch.stack((theta.norm(dim=1), theta.prod(dim=1)), dim=1)
    return seen + 0.05 * randn(len(theta), 2)


def lens(theta: Tensor) -> Tensor:
    """Return a noisy 12 x 12 image of an elliptic ring: where it is, and its log axis ratio."""
    line = torch.linspace(-1, 1, 12)
    X, Y = torch.meshgrid(line, line, indexing="ij")
    x, y, stretch = (each[:, None, None] for each in (theta[:, 0], theta[:, 1], theta[:, 2].exp()))
    radius = torch.hypot((X - x) * stretch, (Y - y) / stretch)
    ring = torch.exp(-(((radius - 0.5) / 0.15) ** 2))
    return (ring + 0.3 * randn(len(theta), 12, 12)).flatten(1)


def rates(theta: Tensor) -> Tensor:
    """Return two rates over decades, and two products: a standard normal of three."""
    rate = torch.exp(2 * theta.sum(dim=1, keepdim=True) + 0.2 * randn(len(theta), 1))
    first = torch.exp(3 * theta[:, :1] + 0.3 * randn(len(theta), 1))
    products = theta[:, 1:] * theta[:, :1] + 0.1 * randn(len(theta), 2)
    return torch.cat((rate, first, products), dim=1)


SCIENCE = {
    "ricker": Simulator(box([2, 0.1, 2], [5, 0.6, 15]), ricker),
    "moving_average": Simulator(box([-1, -1], [1, 1]), moving_average),
    "fitzhugh_nagumo": Simulator(box([0.4, 0.5, 5, 0.2], [1, 1, 20, 0.9]), fitzhugh_nagumo),
    "survival": Simulator(box([-0.7, -1], [1.2, 1]), survival),
    "chirp": Simulator(box([0.5, 1, 0, -math.pi], [3, 8, 5, math.pi]), chirp),
    "hierarchy": Simulator(normal(7), hierarchy),
    "logistic_growth": Simulator(box([0.2, 3, 0.5], [2, 6, 2.5]), logistic_growth),
    "pharmacokinetics": Simulator(normal(3), pharmacokinetics),
    "two_decays": Simulator(box([-1] * 4, [1, 2, 1, 2]), two_decays),
    "stable": Simulator(box([0.7, -1], [2, 1]), stable),
    "changepoint": Simulator(box([-2, -2, 3, -1], [2, 2, 37, 0.5]), changepoint),
    "colours": Simulator(box([0.05, 0.3, 18], [1.5, 1.2, 22]), colours),
    "covariance": Simulator(box([-1, -1, -0.95], [1, 1, 0.95]), covariance),
    "directions": Simulator(box([-math.pi, -1], [math.pi, 3]), directions),
    "multinomial": Simulator(normal(5), multinomial),
    "saturation": Simulator(normal(10), saturation),
    "four_moons": Simulator(box([-1] * 4, [1] * 4), four_moons),
    "funnel": Simulator(normal(5), funnel),
    "detection_limit": Simulator(box([-2, -1], [3, 1]), detection_limit),
    "seir": Simulator(box([0.3, 0.1, 0.1, 0.1], [2, 0.8, 1, 1]), seir),
    "jumps": Simulator(box([-3, -3], [3, 3]), jumps),
    "crossings": Simulator(box([-2, -2], [2, 2]), crossings),
    "lens": Simulator(box([-0.4] * 3, [0.4] * 3), lens),
    "rates": Simulator(normal(3), rates),
}
