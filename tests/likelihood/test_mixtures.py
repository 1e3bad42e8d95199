"""Mixtures of Gaussians for many parameters at once, against torch's distributions, in float64."""

import math

import pytest
import torch
from torch import randn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sbi_jeffreys.likelihood.mixtures import (
    LowerEntries,
    Mixture,
    draw_each,
    log_prob_of_all,
    log_prob_of_pairs,
)

S, K = 4, 3


def entries_of(c, *, correlated=True):
    places = torch.tril_indices(c, c, -1) if correlated else torch.zeros(2, 0, dtype=torch.long)
    rows, columns = (torch.eye(c, dtype=torch.float64)[of] for of in places)
    return LowerEntries(places, rows, columns)


def mixture_of(c, entries):
    scale, lower = randn(S, K, c).double(), randn(S, K, len(entries.rows)).double()
    weight = randn(S, K).double().log_softmax(-1)
    return Mixture(randn(S, K, c).double(), 0.5 * scale, lower, weight)


def by_torch(mixture, entries):
    factor = torch.diag_embed(mixture.log_scale.exp())
    factor[..., entries.places[0], entries.places[1]] = mixture.lower
    gaussians = MultivariateNormal(mixture.mean, precision_matrix=factor.mT @ factor)
    return MixtureSameFamily(Categorical(logits=mixture.log_weight), gaussians)


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("c", [1, 2, 5])
def test_density_is_that_of_torch_up_to_its_constant(c, correlated):
    entries = entries_of(c, correlated=correlated)
    mixture = mixture_of(c, entries)
    truth, w = by_torch(mixture, entries), randn(7, c).double()
    constant = 0.5 * c * math.log(2 * math.pi)
    expected = truth.log_prob(w.unsqueeze(1)).T + constant
    torch.testing.assert_close(log_prob_of_all(w, mixture, entries), expected)
    pairs = w[:S]
    torch.testing.assert_close(
        log_prob_of_pairs(pairs, mixture, entries), truth.log_prob(pairs) + constant
    )


@pytest.mark.parametrize("c", [1, 25])
def test_sharp_data_lose_no_digits(c):
    """Whitened data are thousands of units wide where noise is a thousandth of their scale."""
    entries = entries_of(c, correlated=False)
    w = 3000 * randn(S, c)
    mixture = Mixture(*(part.float() for part in mixture_of(c, entries)))
    mixture = mixture._replace(mean=mixture.mean + w.unsqueeze(1))
    in_pairs = log_prob_of_pairs(w, mixture, entries)
    # Rounding of such a mean: 1e-4, times a distance of a few, for each column.
    found = log_prob_of_all(w, mixture, entries).diagonal()
    torch.testing.assert_close(found, in_pairs, rtol=0, atol=0.02)


@pytest.mark.parametrize("correlated", [True, False])
def test_draws_have_the_moments_of_the_mixture(correlated):
    num, c = 40_000, 2
    entries = entries_of(c, correlated=correlated)
    one = Mixture(*(part[:1] for part in mixture_of(c, entries)))
    drawn = draw_each(Mixture(*(part.expand(num, *part.shape[1:]) for part in one)), entries)
    truth = by_torch(one, entries)
    # Five standard errors of means, and of second moments by their own spread.
    for found, expected in (
        (drawn, truth.mean[0]),
        (drawn.square(), truth.variance[0] + truth.mean[0].square()),
    ):
        error = found.std(dim=0) / math.sqrt(num)
        assert ((found.mean(dim=0) - expected).abs() < 5 * error).all()
