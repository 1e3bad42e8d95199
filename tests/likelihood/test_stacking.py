"""A mixture of likelihoods, and the shares that rows give them."""

import math

import pytest
import torch

from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.likelihood.stacking import Stack, stacked


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def likelihood(theta, x, common=0, mean=0.0, scale=0.0):
    """Return a likelihood, its Gaussians shifted and narrowed by so much."""
    network = LikelihoodEnergy(theta, x, common=common, num_components=1)
    network.offsets[:, : x.shape[1]] += mean
    network.offsets[:, x.shape[1] : 2 * x.shape[1]] += scale
    return network


def simulations(num=400):
    theta = torch.randn(num, 2)
    return theta, theta + torch.randn(num, 2)


def test_the_energy_is_that_of_the_mixture():
    theta, x = simulations(60)
    first, *others = (likelihood(theta, x, mean=m) for m in (0.0, 1.0, -2.0))
    shares = torch.tensor([0.5, 0.2, 0.3])
    stack = Stack(others, shares.log())
    found = stack(first, theta.unsqueeze(0), x)[0]
    densities = torch.stack([each.log_likelihood(theta, x) for each in (first, *others)]).exp()
    expected = (shares @ densities).log() + first.shift(x)
    assert torch.allclose(found, expected, atol=1e-5)
    # Parameters that all data share.
    crossed = stack(first, theta[:7].unsqueeze(1), x)
    assert crossed.shape == (7, 60)
    assert torch.allclose(crossed.diagonal(), found[:7], atol=1e-4)


def test_equal_likelihoods_are_as_one():
    theta, x = simulations(60)
    first = likelihood(theta, x)
    stack = Stack([likelihood(theta, x)], torch.full((2,), 0.5).log())
    points = theta.unsqueeze(0)
    assert torch.allclose(stack(first, points, x), first(points, x), atol=1e-5)


def test_what_stands_beside_the_proxy_stays_as_it_was_fitted():
    theta, x = simulations(60)
    first, other = likelihood(theta, x), likelihood(theta, x, mean=1.0)
    points = theta.unsqueeze(0).requires_grad_()
    Stack([other], torch.full((2,), 0.5).log())(first, points, x).sum().backward()
    assert all(p.grad is None for p in other.parameters())
    assert points.grad.abs().sum() > 0


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_shares_are_those_of_the_rows(share):
    # Means two units of noise apart: 4,000 rows know a share to 0.012 (a fifth more than by
    # counting, since the two overlap).
    theta, x = simulations(4000)
    first, other = likelihood(theta, x, mean=-1.0), likelihood(theta, x, mean=1.0)
    of_other = torch.rand(4000) < share
    simulated = torch.where(of_other.unsqueeze(1), other.simulate(theta), first.simulate(theta))
    found = stacked(first, [other], (theta, simulated), torch.ones(4000))
    assert found.log_shares.exp()[1] == pytest.approx(share, abs=0.05)
    assert found.log_shares.exp().sum() == pytest.approx(1.0)
    # A kernel under which the rows of one count alone.
    kernel = (~of_other).float()
    found = stacked(first, [other], (theta, simulated), kernel)
    assert found is None


def test_what_is_of_no_use_is_left_out():
    theta, x = simulations()
    rows, weights = (theta, x), torch.ones(400)
    first, good, bad = (likelihood(theta, x, scale=s) for s in (0.0, 0.1, 3.0))
    assert stacked(first, [bad], rows, weights) is None
    assert stacked(first, [], rows, weights) is None
    found = stacked(first, [bad, good], rows, weights)
    assert list(found.others) == [good]
    assert found.log_shares.exp().sum() == pytest.approx(1.0)


def test_likelihoods_that_say_no_number():
    theta, x = simulations()
    rows, weights = (theta, x), torch.ones(400)
    first, good, bad = (likelihood(theta, x, scale=s) for s in (0.0, 0.1, math.nan))
    assert list(stacked(first, [bad, good], rows, weights).others) == [good]
    assert stacked(bad, [first, good], rows, weights) is None


def test_data_in_steps_are_spread_for_all_alike():
    theta = torch.rand(300, 1) * 2 - 1
    x = torch.bernoulli(torch.sigmoid(3 * theta).expand(-1, 3))
    first = likelihood(theta, x)
    # The same twice: half and half, had each its own noise it would still differ by chance.
    found = stacked(first, [likelihood(theta, x)], (theta, x), torch.ones(300))
    assert torch.allclose(found.log_shares.exp(), torch.tensor([0.5, 0.5]), atol=1e-5)
