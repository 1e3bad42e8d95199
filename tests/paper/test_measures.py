"""What the experiments measure with: quadrature, Fréchet distance, best and last, verdicts."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_jeffreys.paper import fig3
from sbi_jeffreys.paper.claims import judge
from sbi_jeffreys.paper.data import gaussian_mixture
from sbi_jeffreys.paper.images import frechet_distance
from sbi_jeffreys.paper.models import best_and_last


def test_kl_of_the_truth_is_zero():
    points = fig3._grid()
    assert fig3.kl_on_grid(gaussian_mixture().log_prob(points), points) == pytest.approx(
        0, abs=1e-6
    )


def test_kl_by_quadrature_against_draws():
    other = MultivariateNormal(torch.tensor([0.2, 0.0]), 0.6 * torch.eye(2))
    points = fig3._grid()
    torch.manual_seed(0)
    draws = gaussian_mixture().sample((40_000,))
    log_ratio = gaussian_mixture().log_prob(draws) - other.log_prob(draws)
    # Four standard errors of the mean over draws.
    error = 4 * log_ratio.std() / len(draws) ** 0.5
    quadrature = fig3.kl_on_grid(other.log_prob(points), points)
    assert quadrature == pytest.approx(log_ratio.mean().item(), abs=error.item())


def test_kl_of_samples_is_small_for_the_truth_and_finite_for_nonsense():
    torch.manual_seed(0)
    truth = gaussian_mixture().sample((20_000,))
    # Smoothing by half of the smallest standard deviation, and the finite number, cost 0.02 nats.
    assert 0 < fig3.kl_of_samples(truth) < 0.1
    half = truth[truth[:, 0] > 0]
    assert fig3.kl_of_samples(half) > 1
    everywhere_else = torch.full((100, 2), torch.nan)
    assert 1 < fig3.kl_of_samples(everywhere_else) < 20


def test_frechet_distance_of_gaussians():
    # Diagonal moments: |m|² + sum (s1 - s2)². Rows with exactly these moments.
    rng = np.random.default_rng(0)
    white = rng.standard_normal((500, 3))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    one = torch.from_numpy(white)
    other = torch.from_numpy(white * [2.0, 1.0, 0.5] + [1.0, 0.0, 2.0])
    assert frechet_distance(one, other) == pytest.approx(5 + 1 + 0.25, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_best_and_last():
    table = pd.DataFrame(
        {"run": ["a", "a", "a", "b", "b"], "nll": [3.0, 1.0, 2.0, 1.5, float("nan")]}
    )
    found = best_and_last(table, ["run"]).set_index("run")
    assert found.loc["a"].tolist() == [1.0, 2.0, 1.0]
    assert found.loc["b"].tolist() == [1.5, np.inf, np.inf]


def test_verdicts():
    verdicts = [
        judge("x", "c", {"a": a, "b": b}).verdict
        for a, b in ((True, True), (True, False), (False, False))
    ]
    assert verdicts == ["holds", "holds in part", "does not hold"]
    claim = judge("x", "c", {"a": True, "b": False}, "seed 0")
    assert claim.evidence == "a: yes; b: no; seed 0"
