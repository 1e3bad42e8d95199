"""Points in place of draws: spread as a standard normal, evenly, and no generator is asked."""

import pytest
import torch

from sbi_jeffreys.utils.quasi_random import quasi_normal


@pytest.mark.parametrize("features", [1, 2, 10, 20, 50])
def test_moments_are_those_of_a_standard_normal(features):
    points = quasi_normal(1024, features, 3)
    assert points.shape == (1024, features)
    assert points.dtype == torch.float32
    assert points.isfinite().all()
    # Means of draws scatter by 0.03, of the Sobol sequence by a tenth of that.
    even = features <= 20
    assert points.mean(dim=0).abs().max() < (0.005 if even else 0.15)
    assert (points.var(dim=0) - 1).abs().max() < (0.03 if even else 0.25)
    # Half of what the largest correlation of draws is, of 190 pairs, with twenty.
    if features > 1:
        correlations = torch.corrcoef(points.T) - torch.eye(features)
        assert correlations.abs().max() < 0.15


def test_a_mean_over_them_is_nearer_than_one_over_draws():
    def of(points):
        return points.sin().exp().prod(dim=1).mean()

    exact = of(torch.randn(2_000_000, 3, generator=torch.Generator().manual_seed(0)))
    errors = [[], []]
    for seed in range(20):
        draws = torch.randn(256, 3, generator=torch.Generator().manual_seed(seed))
        for found, points in zip(errors, (draws, quasi_normal(256, 3, seed)), strict=True):
            found.append(of(points) - exact)
    draws, even = (torch.stack(each).square().mean().sqrt() for each in errors)
    # A fifth as a rule.
    assert even < 0.5 * draws


@pytest.mark.parametrize("features", [3, 50])
def test_the_same_every_time_and_others_by_another_seed(features):
    before = torch.get_rng_state()
    first = quasi_normal(16, features, 0)
    quasi_normal.cache_clear()
    assert torch.equal(quasi_normal(16, features, 0), first)
    assert not torch.equal(quasi_normal(16, features, 1), first)
    assert torch.equal(torch.get_rng_state(), before)
