"""Units of measurement do not matter: scales of columns, and what a training makes of them."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Independent, Normal

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.features.regression import shrunk_cholesky
from sbi_jeffreys.features.scales import (
    magnitude,
    nearer_as_logarithms,
    shift_and_scale,
    spread,
    standardizer,
)


def test_magnitude_is_a_power_of_two_below_the_largest_entry():
    rows = torch.tensor([[1.0, -3.0, 1e-30, 0.0], [0.5, 2.0, -9e-31, 0.0]])
    unit = magnitude(rows)
    assert torch.equal(unit.log2(), unit.log2().round())
    largest = rows[:, :3].abs().amax(dim=0)
    assert ((unit[:3] <= largest) & (largest < 2 * unit[:3])).all()
    assert unit[3] == 1.0


def test_magnitude_of_the_largest_and_the_smallest_numbers_is_finite():
    finfo = torch.finfo(torch.float32)
    unit = magnitude(torch.tensor([[finfo.max, finfo.tiny, finfo.smallest_normal / 2**20]]))
    assert unit.isfinite().all()
    assert (unit > 0).all()


def test_spread_is_the_standard_deviation_to_the_bit():
    rows = torch.randn(200, 5) * torch.tensor([1e-6, 0.3, 1.0, 7.0, 1e9])
    assert torch.equal(spread(rows), rows.std(dim=0))


def test_a_mean_of_numbers_whose_sum_is_none():
    rows = 1e36 * (1 + torch.rand(1000, 2))
    mean, std = shift_and_scale(rows)
    torch.testing.assert_close(mean.double(), rows.double().mean(dim=0), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(std.double(), rows.double().std(dim=0), rtol=1e-5, atol=0.0)
    few = torch.randn(1000, 2)
    assert torch.equal(shift_and_scale(few)[0], few.mean(dim=0))


@pytest.mark.parametrize("unit", [1e-30, 1e-21, 1e-9, 1e21, 1e30])
def test_spread_in_any_unit(unit):
    rows = torch.randn(200, 2, 3)
    torch.testing.assert_close(spread(rows * unit) / unit, rows.std(dim=0))


def test_spread_of_what_never_varies_is_one():
    rows = torch.stack((torch.zeros(10), torch.full((10,), 0.5), torch.arange(10.0)), dim=1)
    assert spread(rows)[:2].tolist() == [1.0, 1.0]
    assert spread(rows)[2] == rows[:, 2].std()


def test_standardizer_leaves_out_rows_that_are_not_finite():
    x = 1e-21 * (3 + torch.randn(500, 4))
    bad = x.clone()
    bad[7, 2], bad[9, 0] = float("nan"), float("inf")
    kept = torch.ones(500, dtype=torch.bool)
    kept[[7, 9]] = False
    y = standardizer(bad)(x[kept])
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(dim=0), torch.ones(4))


def test_standardizer_of_one_row_does_nothing():
    x = torch.randn(1, 3)
    assert torch.equal(standardizer(x)(x), x)


def test_covariance_of_residuals_that_vanish_has_the_scale_of_what_they_explain():
    residuals = torch.zeros(50, 2).numpy()
    lower = shrunk_cholesky(residuals, torch.tensor([1e-20, 3.0]).double().numpy())
    assert lower.diagonal() == pytest.approx([1e-23, 3e-3])


@pytest.mark.parametrize("kind", ["box", "normal", "none"])
@pytest.mark.parametrize(
    ("unit_theta", "unit_x"), [(2.0**-66, 2.0**-70), (2.0**50, 2.0**60)], ids=["small", "large"]
)
def test_a_training_in_other_units_says_the_same(kind, unit_theta, unit_x):
    theta = torch.rand(200, 2) if kind == "box" else torch.randn(200, 2)
    x = theta + 0.1 * torch.randn(200, 2)

    def log_prob(unit_theta, unit_x):
        scale = unit_theta * torch.ones(2)
        if kind == "box":
            prior = BoxUniform(torch.zeros(2), scale)
        elif kind == "normal":
            prior = Independent(Normal(torch.zeros(2), scale), 1)
        else:
            prior = None
        trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False)
        trainer.append_simulations(theta * unit_theta, x * unit_x)
        net = trainer.train(max_num_epochs=5)
        with torch.no_grad():
            found = net.log_prob((theta * unit_theta)[None], x * unit_x)[0]
        return found + 2 * math.log(unit_theta)

    # Powers of two round nothing; densities are shifted by a constant of some 90 nats, whose
    # rounding (1e-5) the few steps may amplify.
    expected = log_prob(1.0, 1.0)
    torch.testing.assert_close(log_prob(unit_theta, unit_x), expected, atol=0.02, rtol=0)


def test_units_of_columns_that_stay_are_one():
    x = torch.stack((torch.randn(500).exp(), torch.rand(500)), dim=1)
    bent, unit = nearer_as_logarithms(x)
    assert bent.tolist() == [True, False]
    assert unit.tolist() == [pytest.approx(x[:, 0].quantile(0.02).item()), 1.0]


@pytest.mark.parametrize("rows", [0, 1, 19])
def test_few_rows_are_no_reason_for_logarithms(rows):
    assert not nearer_as_logarithms(torch.randn(rows, 2).exp())[0].any()


@pytest.mark.parametrize("value", [1.0, -9999.0, 1.7e9, 1e12, 1e20, 3e-21])
@pytest.mark.parametrize("num", [54, 60, 1000])
def test_a_column_that_never_varies_is_zero_whatever_its_value(num, value):
    # The mean of many equal numbers, rounded, is another number.
    x = torch.full((num, 2), value)
    mean, scale = shift_and_scale(x)
    assert torch.equal((x - mean) / scale, torch.zeros(num, 2))
