"""Reference posteriors of the truncated tasks against importance sampling from the prior."""

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import get_task
from sbi_jeffreys.tasks.rejection import inside_box, sample_by_rejection

# One parameter each whose posterior is wide enough for prior draws to reach it.
FRESH = {
    "two_moons": [0.55, 0.3],
    "gaussian_mixture": [9.5, -3.0],
    "slcp": [0.7, -1.5, 1.9, 1.6, 0.8],
}


def statistics(theta):
    """Moments of θ and |θ| and the products with the first and last component, ``(n, k)``."""
    powers = [theta, theta.abs(), theta**2]
    return torch.cat([*powers, theta[:, :1] * theta[:, 1:], theta[:, -1:] * theta[:, :-1]], dim=1)


@pytest.mark.parametrize("name", FRESH)
def test_moments(name):
    task, generator = get_task(name), torch.Generator().manual_seed(5)
    x = task.simulator(torch.tensor([FRESH[name]]), generator=generator)
    theta, _ = task.simulate(1_000_000, generator=generator)
    w = task.log_likelihood(theta, x).double().softmax(dim=0)[:, None]
    assert 1 / (w**2).sum() > 300

    exact = statistics(task.reference_posterior(x, 20_000, generator=generator).double())
    prior = statistics(theta.double())
    mean = (w * prior).sum(dim=0)
    variance = (w**2 * (prior - mean) ** 2).sum(dim=0) + exact.var(dim=0) / len(exact)
    z = (exact.mean(dim=0) - mean) / variance.sqrt()
    # Up to 23 correlated statistics: |z| > 4.2 in any has probability below 1e-3.
    assert z.abs().max() < 4.2


def test_rejection_sampling_keeps_what_was_accepted():
    rng = np.random.default_rng(0)

    def propose(m):
        theta = rng.uniform(0, 1, (m, 1))
        return theta[theta[:, 0] < 0.01]

    theta = sample_by_rejection(propose, 2_000)
    assert theta.shape == (2_000, 1)
    assert len(np.unique(theta)) == 2_000
    # The mean of U(0, 0.01) has standard error 6.5e-5 here.
    assert abs(theta.mean() - 0.005) < 3e-4


def test_rejection_sampling_gives_up():
    with pytest.raises(RuntimeError, match="only 0 of 10 proposals were accepted, 5 samples"):
        sample_by_rejection(lambda m: np.zeros((0, 1)), 5, max_proposals=10)


def test_impossible_observation():
    with pytest.raises(RuntimeError, match="nearly impossible under the prior"):
        get_task("two_moons").reference_posterior(torch.tensor([5.0, 5.0]), 10)


@pytest.mark.parametrize("name", ["slcp", "slcp_distractors"])
def test_points_on_one_line_have_no_posterior_to_draw_from(name):
    task = get_task(name)
    with pytest.raises(RuntimeError, match="lie on one line"):
        task.reference_posterior(torch.zeros(task.dim_x), 5)


def test_box_is_half_open_in_float32():
    theta = np.array([[0.0], [1.0], [1 - 1e-12], [0.999], [-1e-12]])
    assert inside_box(theta, 0.0, 1.0).tolist() == [True, False, False, True, False]
