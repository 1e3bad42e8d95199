"""Likelihoods with their constants, and samples where a sampler must reject."""

import math

import pytest
import torch
from sbi_jeffreys.tasks import get_task
from sbi_jeffreys.tasks.lotka_volterra import NOISE, log_populations
from torch.distributions import LogNormal


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("two_moons", (-0.6, -0.1), (-0.2, 0.3)), ("gaussian_mixture", (-4.6, -5.3), (5.4, 4.7))],
)
def test_a_likelihood_is_a_density_of_x(name, low, high):
    task = get_task(name)
    theta = torch.tensor([[0.5, 0.6]]) if name == "two_moons" else torch.tensor([[0.4, -0.3]])
    # Midpoints, some ten in the least of the standard deviations.
    axes = [
        torch.linspace(a, b, 1001, dtype=torch.float64)[:-1] + (b - a) / 2000
        for a, b in zip(low, high, strict=True)
    ]
    x = torch.cartesian_prod(*axes)
    density = task.log_likelihood(theta.double().expand(len(x), 2), x).exp()
    area = (high[0] - low[0]) * (high[1] - low[1]) / len(x)
    assert density.sum().item() * area == pytest.approx(1.0, abs=5e-3)


def test_lotka_volterra_is_log_normal():
    task = get_task("lotka_volterra")
    theta, x = task.simulate(5)
    expected = LogNormal(log_populations(theta), NOISE).log_prob(x.double()).sum(dim=1)
    torch.testing.assert_close(task.log_likelihood(theta, x), expected.float())


def test_the_prior_of_the_glm():
    """A variance of two, and smooth filters: second differences, and ever smaller values."""
    prior = get_task("bernoulli_glm").prior
    covariance = prior.covariance_matrix
    assert covariance[0, 0].item() == pytest.approx(2.0, rel=1e-5)
    assert (covariance[0, 1:].abs() < 1e-6).all()
    f = torch.randn(9)
    before = torch.cat((torch.zeros(2), f))
    # The rows of F, one by one.
    rows = [
        before[i + 2] - 2 * before[i + 1] + before[i] + math.sqrt(i / 9) * f[i] for i in range(9)
    ]
    square = f @ prior.precision_matrix[1:, 1:] @ f
    assert square.item() == pytest.approx(sum(row.item() ** 2 for row in rows), rel=1e-3)


def test_two_moons_of_an_observation_that_no_sum_of_parameters_explains():
    """Of half of the noise the sum's size would come out negative."""
    x = torch.tensor([0.3, 0.0])
    theta = get_task("two_moons").reference_posterior(
        x, 2000, generator=torch.Generator().manual_seed(0)
    )
    u1 = x[0] + theta.sum(dim=1).abs() / math.sqrt(2) - 0.25
    u2 = x[1] - (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    # A mean of 2000 squares of standard normals is 1, give or take 0.03.
    squares = ((torch.hypot(u1, u2) - 0.1) / 0.01).square()
    assert squares.mean().item() == pytest.approx(1.0, abs=0.15)
    assert (u1 > 0).all()


@pytest.mark.parametrize("what", ["observation", "true_parameters"])
def test_what_a_user_writes_into_a_published_one_is_not_kept(what):
    read = getattr(get_task("two_moons"), what)
    before = read(1).clone()
    read(1).zero_()
    assert torch.equal(read(1), before)
