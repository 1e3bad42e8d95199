"""The envelope sampler on densities with known moments, and on those it must refuse."""

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import envelope, get_task
from sbi_jeffreys.tasks.envelope import sample_by_envelope
from scipy.special import digamma, polygamma

PRIOR = np.zeros(2), 9 * np.eye(2)


def test_gaussian_far_in_the_prior_tail():
    centre, std = np.array([7.0, -8.0]), np.array([0.01, 0.5])

    def log_density(phi):
        return -0.5 * (((phi - centre) / std) ** 2).sum(axis=1)

    samples = sample_by_envelope(log_density, *PRIOR, 10_000, np.random.default_rng(0))
    assert samples.shape == (10_000, 2)
    # Four standard errors of a mean and of a standard deviation.
    z = (samples - centre) / std
    assert np.abs(z.mean(axis=0)).max() < 4 / 100
    assert np.abs(z.std(axis=0) - 1).max() < 4 / 100 / np.sqrt(2)
    assert len(np.unique(samples, axis=0)) == 10_000


def test_skewed_density():
    """φ = log g for g ~ Gamma(a): mean ψ(a), variance ψ'(a), third central moment ψ''(a)."""
    a = np.array([2.0, 5.0])

    def log_density(phi):
        return (a * phi - np.exp(phi)).sum(axis=1)

    phi = sample_by_envelope(log_density, *PRIOR, 20_000, np.random.default_rng(1))
    c = phi - digamma(a)
    for power, exact in ((1, 0.0), (2, polygamma(1, a)), (3, polygamma(2, a))):
        error = (c**power).mean(axis=0) - exact
        assert (np.abs(error) < 4 * (c**power).std(axis=0) / np.sqrt(len(c))).all()


def test_two_peaks():
    """Peaks 16 standard deviations apart lie under one envelope, each with half of the mass."""

    def log_density(phi):
        return np.logaddexp(
            -0.5 * ((phi - 2) ** 2).sum(axis=1) / 0.25**2,
            -0.5 * ((phi + 2) ** 2).sum(axis=1) / 0.25**2,
        )

    samples = sample_by_envelope(log_density, *PRIOR, 4_000, np.random.default_rng(2))
    assert abs((samples[:, 0] > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(4_000)


def test_no_envelope(monkeypatch):
    monkeypatch.setattr(envelope, "MAX_ROUNDS", 2)
    with pytest.raises(RuntimeError, match="no envelope was found in 2 rounds"):
        sample_by_envelope(
            lambda phi: -0.5 * ((phi / 1e-6) ** 2).sum(axis=1), *PRIOR, 5, np.random.default_rng(0)
        )


def test_too_few_accepted(monkeypatch):
    monkeypatch.setattr(envelope, "SLACK", 1e5)
    with pytest.raises(RuntimeError, match=r"only \d+ of \d+ draws were accepted, 50 samples"):
        sample_by_envelope(
            lambda phi: -0.5 * (phi**2).sum(axis=1), *PRIOR, 50, np.random.default_rng(0)
        )


@pytest.mark.slow
@pytest.mark.parametrize("i", [1, 4, 8])
def test_sir_against_quadrature(i):
    """Moments of log θ over a grid of 10 standard deviations, 100 by 100."""
    task = get_task("sir")
    samples = task.reference_posterior(i, 10_000, generator=torch.Generator().manual_seed(0))
    phi = samples.double().log()
    mean, std = phi.mean(dim=0), phi.std(dim=0)
    axis = torch.linspace(-5, 5, 100, dtype=torch.float64)
    grid = mean + std * torch.cartesian_prod(axis, axis)
    # The density of log θ is that of θ times the product of its components.
    log_p = task.log_posterior_unnormalized(grid.exp(), task.observation(i)) + grid.sum(dim=1)
    w = log_p.double().softmax(dim=0)[:, None]
    exact_mean = (w * grid).sum(dim=0)
    exact_std = (w * (grid - exact_mean) ** 2).sum(dim=0).sqrt()
    assert ((mean - exact_mean).abs() / exact_std).max() < 4 / 100
    assert (std / exact_std - 1).abs().max() < 4 / 100 / np.sqrt(2)
