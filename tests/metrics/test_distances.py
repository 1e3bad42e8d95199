"""MMD, sliced Wasserstein distance and mode masses against closed forms."""

import math

import pytest
import torch
from sbi.utils.metrics import unbiased_mmd_squared
from scipy.stats import wasserstein_distance

from sbi_jeffreys.metrics import mmd2, mode_mass_error, sliced_wasserstein


def normal(n, d, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("d", [1, 3])
def test_mmd_of_normal_distributions(d):
    sigma, shift = 1.5, 0.7
    s = sigma**2 + 2
    within = (sigma**2 / s) ** (d / 2)
    expected = 2 * within * (1 - math.exp(-d * shift**2 / (2 * s)))
    value = mmd2(normal(3000, d), normal(2500, d, shift, seed=1), bandwidth=sigma)
    assert value == pytest.approx(expected, abs=0.015)


def test_mmd_is_zero_on_average_for_equal_distributions():
    values = torch.tensor(
        [mmd2(normal(100, 2, seed=2 * s), normal(100, 2, seed=2 * s + 1)) for s in range(50)]
    )
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(50)
    assert (values < 0).any()  # unbiased, hence not all positive


def test_mmd_agrees_with_sbi_and_takes_the_median_of_the_first_set():
    p, q = normal(1100, 2), normal(90, 2, 1.0, seed=1)  # more than one chunk of rows
    scale = float(torch.pdist(p).median())
    assert mmd2(p, q) == pytest.approx(float(unbiased_mmd_squared(p, q, scale)), abs=1e-10)


def test_sliced_wasserstein_of_a_shift():
    # Each projection moves by u'm, whose mean square over the sphere is |m|^2 / d.
    p, shift = normal(200, 3), torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    value = sliced_wasserstein(p, p + shift, projections=4000)
    assert value == pytest.approx(3 / math.sqrt(3), rel=0.03)
    assert sliced_wasserstein(p, p) == 0.0


@pytest.mark.parametrize(("n", "m"), [(50, 50), (60, 45), (7, 100)])
def test_sliced_wasserstein_in_one_dimension_agrees_with_scipy(n, m):
    p, q = normal(n, 1), normal(m, 1, 0.5, seed=1)
    expected = wasserstein_distance(p[:, 0].numpy(), q[:, 0].numpy())
    assert sliced_wasserstein(p, q, order=1.0) == pytest.approx(expected, abs=1e-12)


def test_sliced_wasserstein_of_a_high_order_is_the_largest_gap():
    p = normal(50, 2)
    shift = torch.tensor([3.0, 0.0], dtype=torch.float64)
    # (E |u'm|^r)^(1/r): of many directions, some nearly that of the shift.
    assert sliced_wasserstein(p, p + shift, order=2000.0) == pytest.approx(3.0, rel=0.02)
    far = sliced_wasserstein(1e200 * p, 1e200 * (p + shift))
    assert far == pytest.approx(1e200 * sliced_wasserstein(p, p + shift))


def test_sliced_wasserstein_depends_on_its_seed_only():
    p, q = normal(50, 3), normal(50, 3, 1.0, seed=1)
    assert sliced_wasserstein(p, q) == sliced_wasserstein(p, q)
    assert sliced_wasserstein(p, q) != sliced_wasserstein(p, q, seed=2)


def test_mode_masses():
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 2)
    reference = torch.tensor([0] * 2 + [1] * 2 + [3] * 1)
    error = mode_mass_error(labels, reference, modes=5)
    expected = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(error.per_mode, expected)
    assert error.total_variation == pytest.approx(0.4)
    assert len(mode_mass_error(labels, reference).per_mode) == 4


def test_two_modes_may_be_told_apart_by_bools():
    left, right = torch.tensor([True, False]), torch.tensor([True, True, True, False])
    assert mode_mass_error(left, right).total_variation == 0.25
    assert mode_mass_error(left[:1], right[:3]).per_mode.tolist() == [0.0, 0.0]


EMPTY = torch.tensor([], dtype=torch.long)
TWO = torch.rand(2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmd2(torch.rand(1, 2), torch.rand(5, 2)), "samples has 1 rows"),
        (lambda: mmd2(TWO, TWO, bandwidth=0.0), "bandwidth is 0.0"),
        (lambda: mmd2(torch.ones(5, 1), torch.rand(5, 1)), "pass a bandwidth"),
        (lambda: sliced_wasserstein(TWO, torch.rand(2, 2)), "samples have dimension 1"),
        (lambda: sliced_wasserstein(TWO, TWO, projections=0), "projections is 0"),
        (lambda: sliced_wasserstein(TWO, TWO, order=0.5), "order is 0.5"),
        (lambda: mode_mass_error(EMPTY, torch.tensor([0])), "labels must be a vector of integers"),
        (lambda: mode_mass_error(torch.tensor([0]), torch.rand(3)), "reference must be a vector"),
        (lambda: mode_mass_error(torch.tensor([-1]), torch.tensor([0])), r"must be in 0\.\.0"),
        (lambda: mode_mass_error(torch.tensor([3]), torch.tensor([0]), modes=2), r"in 0\.\.1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
