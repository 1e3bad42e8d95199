"""Bits, grades and small counts, many of them zero, with noise of each column or of several."""

import torch
from torch import Tensor, rand, randn
from torch.distributions import NegativeBinomial

from .base import Simulator, box, normal

__all__ = ["COUNTS"]

_ITEMS, _FACTORS = 24, 4
# How much each answer depends on each factor, a third of them at all; always the same.
_LOADINGS = torch.rand(_ITEMS, _FACTORS, generator=torch.Generator().manual_seed(7))
_LOADINGS[torch.arange(_ITEMS * _FACTORS).view(_ITEMS, _FACTORS) % 3 > 0] = 0.0


def expression(theta: Tensor) -> Tensor:
    """Return the counts of 15 transcripts in a cell, some of which are lost to zero.

    Logarithm of their mean, logarithm of the number of failures, log odds of a loss; the mean rises
    from the first to the last.
    """
    level, shape, lost = theta.split(1, dim=1)
    mean = (level + torch.linspace(-1, 1, 15)).exp()
    failures = shape.exp().expand_as(mean)
    counts = NegativeBinomial(failures, logits=(mean / failures).log()).sample()
    return counts * (rand(counts.shape) > lost.sigmoid())


def frequency_spectrum(theta: Tensor) -> Tensor:
    """Return how many sites of a sample of 20 chromosomes are derived in 1 to 19 of them.

    Logarithms of the mutation rate and of the growth of the population, and the share of sites
    whose ancestral state is mistaken, times two; a coalescent (Kingman, 1982).
    """
    rate, growth, mistaken = theta.split(1, dim=1)
    speed = growth[:, 0].exp() - 1 + 1e-3
    rows, time = torch.arange(len(theta)), torch.zeros(len(theta))
    # The number of chromosomes below each lineage, and the length of all that have so many.
    sizes, lengths = torch.ones(len(theta), 20), torch.zeros(len(theta), 19)
    for lineages in range(20, 1, -1):
        waiting = -rand(len(theta)).clamp_min(1e-9).log() / (lineages * (lineages - 1) / 2)
        waiting = torch.log1p(speed * waiting * (-speed * time).exp()) / speed
        for size in range(1, 20):
            lengths[:, size - 1] += (sizes == size).sum(dim=1) * waiting
        time = time + waiting
        first, second = rand(sizes.shape).where(sizes > 0, -1.0).topk(2, dim=1).indices.T
        sizes[rows, first] += sizes[rows, second]
        sizes[rows, second] = 0.0
    expected = lengths * rate.exp() / 2
    return torch.poisson(expected + 0.5 * mistaken * (expected.flip(1) - expected))


def questionnaire(theta: Tensor) -> Tensor:
    """Return 24 answers on a scale of one to five, which depend on four factors, and on noise."""
    said = 1.5 * theta @ _LOADINGS.T + randn(len(theta), _ITEMS)
    return 1.0 + (said.unsqueeze(-1) > torch.tensor([-1.5, -0.5, 0.5, 1.5])).sum(dim=-1)


def sightings(theta: Tensor) -> Tensor:
    """Return whether a species was seen at 20 places on each of four days.

    Where it is absent it is never seen, so that the four days share noise. Log odds of its presence
    and of a sighting, and how both change from place to place (MacKenzie et al., 2002).
    """
    presence, change, seen, of_seen = theta.split(1, dim=1)
    place = torch.linspace(-1.5, 1.5, 20)
    there = rand(len(theta), 20) < torch.sigmoid(presence + change * place)
    days = rand(len(theta), 20, 4) < torch.sigmoid(seen + of_seen * place).unsqueeze(-1)
    return (days & there.unsqueeze(-1)).float().flatten(1)


COUNTS = {
    "expression": Simulator(box([-1, -1, -3], [2, 2, 1]), expression),
    "frequency_spectrum": Simulator(box([-1, 0, 0], [3, 3, 1]), frequency_spectrum),
    "questionnaire": Simulator(normal(_FACTORS), questionnaire),
    "sightings": Simulator(normal(4), sightings),
}
