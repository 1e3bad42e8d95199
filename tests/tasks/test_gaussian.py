"""The Gaussian tasks against closed forms and quadrature, and the constants of the others."""

import numpy as np
import torch
from sbi_jeffreys.tasks import get_task
from scipy.integrate import quad

N = 20_000


def reference(name, x):
    generator = torch.Generator().manual_seed(0)
    return get_task(name).reference_posterior(x, N, generator=generator).double().numpy()


def test_gaussian_linear():
    x = torch.linspace(-1.0, 1.0, 10)
    theta = reference("gaussian_linear", x)
    std = np.sqrt(0.05)
    # Four and a half standard errors, for ten components.
    assert np.abs(theta.mean(axis=0) - x.numpy() / 2).max() < 4.5 * std / np.sqrt(N)
    assert np.abs(np.cov(theta.T) - 0.05 * np.eye(10)).max() < 5 * 0.05 * np.sqrt(2 / N)


def test_gaussian_linear_uniform():
    x = torch.linspace(-2.5, 1.5, 10)
    theta = reference("gaussian_linear_uniform", x)
    for samples, centre in zip(theta.T, x.double().numpy(), strict=True):
        mass, mean, square = (
            quad(lambda t, p, c: t**p * np.exp(-5 * (t - c) ** 2), -1, 1, args=(p, centre))[0]
            for p in range(3)
        )
        std = np.sqrt(square / mass - (mean / mass) ** 2)
        assert abs(samples.mean() - mean / mass) < 4.5 * std / np.sqrt(N)
        assert abs(samples.std() / std - 1) < 0.05


def test_sufficient_statistics_of_the_published_spikes():
    """bernoulli_glm and bernoulli_glm_raw publish the same data: V'y must be x."""
    glm, raw = get_task("bernoulli_glm"), get_task("bernoulli_glm_raw")
    theta = glm.simulate(6, generator=torch.Generator().manual_seed(0))[0].double()
    for i in range(1, 11):
        a = glm.log_likelihood(theta, glm.observation(i))
        b = raw.log_likelihood(theta, raw.observation(i))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_distractors_hide_the_published_points():
    """slcp_distractors publishes the data of slcp: on them the two likelihoods agree."""
    slcp, hidden = get_task("slcp"), get_task("slcp_distractors")
    theta = slcp.simulate(6, generator=torch.Generator().manual_seed(0))[0]
    for i in range(1, 11):
        a = slcp.log_likelihood(theta, slcp.observation(i))
        assert torch.equal(a, hidden.log_likelihood(theta, hidden.observation(i)))


def test_distractors_have_the_scale_of_the_published_ones():
    """Heavy tails leave no moments; the medians of |ξ| agree within a factor of 1.5."""
    task = get_task("slcp_distractors")
    theta = task.true_parameters(1).repeat(2_000, 1)
    x = task.simulator(theta, generator=torch.Generator().manual_seed(0))
    published = torch.cat([task.observation(i) for i in range(1, 11)])
    ratio = float(x.abs().median() / published.abs().median())
    assert 1 / 1.5 < ratio < 1.5


def test_published_residuals_fit_the_mixture():
    """The ten published residuals of the mixture: half of them wide, none beyond 4 deviations."""
    task = get_task("gaussian_mixture")
    residuals = torch.cat([task.observation(i) - task.true_parameters(i) for i in range(1, 11)])
    size = residuals.norm(dim=1)
    assert 2 <= int((size > 0.4).sum()) <= 8
    assert size.max() < 4
