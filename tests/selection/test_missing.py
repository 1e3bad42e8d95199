"""Missing values of x: which codes are found, and what is filled in."""

import pytest
import torch
from gaps import CODE, PRIOR, gaps, sensors
from torch import rand, randn, where

from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.selection.missing import Filled, filling_of
from sbi_jeffreys.selection.seen import missed, what_to_see


def found_in(column, n=500):
    """Return the codes of one column among two that have none."""
    theta, x = randn(n, 1), randn(n, 3)
    x[:, 1] = column
    filled = filling_of(theta, x)
    if filled is None:
        return None
    assert coded(filled) == [False, True, False]
    return sorted(filled.codes[:, 1].tolist())


def coded(filled):
    """Return which columns have codes."""
    return (~filled.codes.isnan().all(dim=0)).tolist()


def some(value, share=0.1):
    return lambda x: where(rand(len(x)) < share, torch.tensor(value), x)


@pytest.mark.parametrize(
    ("column", "codes"),
    [
        (some(-999.0)(randn(500)), [-999.0]),
        (some(99.0)(14 + 6 * rand(500)), [99.0]),
        (some(-1.0)(torch.poisson(5 * torch.ones(500))), None),
        (some(-99.0)(torch.poisson(5 * torch.ones(500))), [-99.0]),
        (some(-99.0)(100 * rand(500)), [-99.0]),
        (some(99.0)(torch.randint(51, (500,)).float()), [99.0]),
        (some(-1.0)((3 * randn(500)).exp()), [-1.0]),
        (some(-1.0)(some(-9.0)((3 * randn(500)).exp())), [-9.0, -1.0]),
        (some(1e6)(some(-998.0)(some(-999.0)(randn(500)))), [-999.0, -998.0, 1e6]),
        # One far outlier beside the code does not hide it.
        (torch.cat((some(-999.0)(randn(499)), torch.tensor([3e4]))), [-999.0]),
    ],
    ids=[
        "below",
        "above",
        "near to counts",
        "of counts",
        "of percentages",
        *("beyond fifty", "below decades", "two below decades"),
        "three",
        "and outlier",
    ],
)
def test_codes_are_found(column, codes):
    assert found_in(column) == codes


@pytest.mark.parametrize(
    "column",
    [
        randn(500),
        randn(500) / randn(500),
        torch.poisson(3 * torch.ones(500)),
        torch.poisson(torch.exp(2 * randn(500))),
        where(rand(500) < 0.4, torch.zeros(500), randn(500).exp()),
        randn(500).clamp(max=0.5),
        torch.tensor([0.0, 1.0, 1000.0])[torch.randint(3, (500,))],
        2.0 ** (7 + 2.5 * randn(500)).round().clamp(0, 14),
        4.0 ** (7 + 2.5 * randn(500)).round().clamp(0, 14),
        -(2.0 ** (7 + 2.5 * randn(500)).round().clamp(0, 14)),
        torch.ones(500),
        # One row in five hundred, and fewer than five.
        torch.cat((randn(499), torch.tensor([-999.0]))),
        torch.cat((randn(496), torch.full((4,), -999.0))),
        # Two states of a system, both of which vary.
        torch.cat((randn(250), 50 + randn(250))),
    ],
    ids=[
        *("normal", "ratios", "counts", "counts over decades", "zeros and positive", "censored"),
        *(
            "categories",
            "dilutions",
            "dilutions by four",
            "negative dilutions",
            "constant",
            "outlier",
            "few",
            "two states",
        ),
    ],
)
def test_other_values_are_no_codes(column):
    assert found_in(column) is None


def test_codes_are_of_all_columns_that_have_no_values_near():
    theta, x = randn(100, 1), randn(100, 12)
    # Two of a hundred in each of ten columns, none in another, and one whose values reach there.
    for i in range(10):
        x[2 * i : 2 * i + 2, i] = CODE
    x[:, 11] = 2000 * x[:, 11]
    filled = filling_of(theta, x)
    assert coded(filled) == 11 * [True] + [False]
    assert filled(torch.full((1, 12), CODE))[0, :11].abs().max() < 3
    assert filled(torch.full((1, 12), CODE))[0, 11] == CODE


def test_columns_of_few_values_have_no_code_of_others():
    theta = randn(300, 1)
    spins, counts = randn(300, 2).sign(), torch.poisson(0.5 * torch.ones(300, 1))
    # -1 is none of the values of the first two.
    x = torch.cat((some(-1.0)(14 + 6 * rand(300))[:, None], 20 + randn(300, 1)), dim=1)
    x[:10, 1] = -1.0
    filled = filling_of(theta, torch.cat((x, spins, counts), dim=1))
    assert coded(filled) == [True, True, False, False, False]


@pytest.mark.parametrize("n", [0, 1, 4, 12])
def test_few_rows_have_no_codes(n):
    x = randn(50, 2)
    x[:12:3] = CODE
    assert filling_of(randn(n, 1), x[:n]) is None
    assert filling_of(randn(50, 1), torch.cat((x, x))[:50]) is not None


def test_different_codes_say_different_things():
    theta = randn(500, 1)
    seen = theta + 0.3 * randn(500, 1)
    x = where(seen < -1, torch.tensor(-99.0), where(seen > 1, torch.tensor(99.0), seen))
    filled = filling_of(theta, x)
    below, above = filled(torch.tensor([[-99.0], [99.0]]))
    assert not torch.equal(below[1:], above[1:])


def test_absence_tells_of_theta_also_with_few_rows():
    theta = randn(60, 1)
    x = randn(60, 3)
    x[:, 0] = x[:, 0].where(theta[:, 0] > 0, CODE)
    assert filling_of(theta, x).columns_counted.tolist() == [0]


def test_other_number_types():
    theta = randn(300, 2)
    x = gaps(sensors(theta), code=-99.9)
    filled = filling_of(theta, x)
    twice = torch.where(x == torch.tensor(-99.9), -99.9, x.double())
    assert torch.equal(filled(twice), filled(x))
    assert flow_nn(PRIOR)(theta, twice).embedding_net(x).isfinite().all()


def test_rows_with_nan_do_not_count():
    theta = randn(300, 2)
    x = gaps(sensors(theta))
    alone = filling_of(theta, x)
    x = torch.cat((x, torch.full((20, 8), torch.nan)))
    beside = filling_of(torch.cat((theta, randn(20, 2))), x)
    # Rows are drawn in another order, and rounded so.
    assert torch.allclose(alone(x[:300]), beside(x[:300]), atol=1e-4)


@pytest.mark.parametrize("noise", [0.3, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("missing", [1, 4, 6])
def test_missing_values_are_their_mean_given_the_others(noise, missing):
    """Against what the true line and noise say, as far off as the truth itself allows."""
    theta, test = PRIOR.sample((2000,)), PRIOR.sample((500,))
    filled = filling_of(theta, gaps(sensors(theta, noise=noise)))
    place = torch.linspace(-1, 1, 8).double()
    line = torch.stack((torch.ones(8), place), dim=1).double()
    complete = sensors(test, noise=noise)
    x = complete.clone()
    there = torch.ones(8).double()
    there[:missing] = 0
    x[:, :missing] = CODE
    precision = (line * there[:, None]).T @ line + noise**2 * torch.eye(2).double()
    expected = torch.linalg.solve(precision, line.T @ (there * x).double().T).T @ line.T
    error = (filled(x).double() - expected)[:, :missing].square().mean().sqrt()
    own = (expected - complete)[:, :missing].square().mean().sqrt()
    # Of 2,000 rows with gaps the line is known to a few hundredths of the noise, and far from where
    # sensors are left less well.
    assert error < 0.3 * own
    assert torch.equal(filled(x)[:, missing:], x[:, missing:])


def test_a_column_that_is_mostly_missing():
    theta = PRIOR.sample((1000,))
    complete = sensors(theta)
    x = gaps(complete)
    hidden = rand(1000) < 0.9
    x[:, 3] = complete[:, 3].where(~hidden, CODE)
    filled = filling_of(theta, x)
    # The noise is 0.1, and the line's part of the column 0.1 as well where others are missing.
    assert (filled(x) - complete)[hidden, 3].square().mean().sqrt() < 0.2
    # A standard deviation of a hundred values.
    assert filled.scale[3] == pytest.approx(complete[:, 3].std(), rel=0.25)


def test_what_is_there_stays_as_it_is():
    theta = randn(300, 2)
    x = gaps(sensors(theta))
    filled = filling_of(theta, x)
    here = x != CODE
    assert torch.equal(filled(x)[here], x[here])
    assert (filled(x).abs() < 10).all()


@pytest.mark.parametrize("unit", [1e-21, 1e16])
def test_any_unit(unit):
    theta = randn(500, 2)
    x = sensors(theta)
    hole = rand(x.shape) < 0.1
    plain = where(hole, torch.tensor(CODE), x)
    scaled = where(hole, torch.tensor(CODE * unit), x * unit)
    expected = filling_of(theta, plain)(plain)
    # Rounding in single precision.
    assert torch.allclose(filling_of(theta, scaled)(scaled) / unit, expected, atol=1e-3)


def test_counts_are_filled_in_by_counts():
    theta = rand(500, 1)
    x = torch.poisson(20 * theta.expand(500, 4))
    x = gaps(x)
    filled = filling_of(theta, x)(x)
    assert torch.equal(filled, filled.round())
    assert (filled >= -1).all()


def test_what_misses_because_of_theta_is_indicated_once():
    theta = randn(500, 1)
    faint = (theta + 0.3 * randn(500, 1) < -0.5).expand(500, 3)
    x = where(faint, torch.tensor(CODE), randn(500, 3))
    x = torch.cat((x, gaps(randn(500, 2))), dim=1)
    filled = filling_of(theta, x)
    # An indicator, and the number of missing values in all.
    assert filled.counted.tolist() == [0, 5]
    assert filled.columns_counted.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(filled(x)[:, 5], faint[:, 0].float())
    assert torch.equal(filled(x)[:, 6], (x == CODE).float().sum(dim=1))


def test_what_no_column_says_by_missing_their_number_may_say():
    theta = randn(300, 1)
    x = where(rand(300, 40) < torch.sigmoid(0.3 * theta - 1), torch.tensor(CODE), randn(300, 40))
    filled = filling_of(theta, x)
    assert 40 in filled.counted
    assert len(filled.counted) < 5
    assert len(filled.columns_counted) == 40


def test_what_tells_how_another_column_is_to_be_read_is_indicated():
    """A code that is independent of theta, and says with which sign theta is in another column."""
    theta = 2 * rand(1000, 1) - 1
    off = rand(1000, 1) < 0.5
    x = torch.cat((where(off, -theta, theta) + 0.05 * randn(1000, 1), gaps(randn(1000, 3))), dim=1)
    x = torch.cat((x, where(off, torch.tensor(CODE), 5 + randn(1000, 1))), dim=1)
    filled = filling_of(theta, x)
    assert filled.counted.tolist() == [4]
    assert torch.equal(filled(x)[:, 5:], off.float())


def test_what_is_missing_at_random_is_not_indicated():
    """Where columns that miss values tell of theta: filled in, they say less, and are no sign."""
    found = 0
    for _ in range(20):
        theta = 2 * rand(1000, 3) - 1
        x = gaps(theta @ randn(3, 12) + 0.3 * randn(1000, 12))
        found += len(filling_of(theta, x).counted)
    # Of forty such data three have one; a test at the margin of each product would find dozens.
    assert found <= 4


def test_files_of_old_hold_sets_of_codes():
    theta = randn(500, 1)
    x = gaps(randn(500, 3))
    x[:, :1] = x[:, :1].where(theta > -0.5, CODE)
    filled = filling_of(theta, x)
    assert filled.counted.tolist() == [0, 3]
    twin = Filled.blank(filled.sizes, 3)
    old = filled.state_dict() | {"counted": torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])}
    twin.load_state_dict(old)
    assert torch.equal(twin(x), filled(x))


def test_a_code_that_is_rare_in_the_columns_that_are_kept():
    theta = 2 * rand(1000, 2) - 1
    x = torch.cat((theta + 0.05 * randn(1000, 2), randn(1000, 10)), dim=1)
    x = gaps(x, 0.004)
    seen = what_to_see(theta, x)
    columns, filled, features = seen.features
    assert columns.kept.tolist() == [0, 1]
    assert coded(filled) == [True, True]
    # Of the uniform values that are there, 0.6.
    assert (features.std < 2).all()


def test_a_column_is_kept_for_its_absence():
    theta = randn(600, 1)
    faint = theta[:, 0] + 0.3 * randn(600) < -0.5
    noise = randn(600, 4)
    noise[:, 2] = noise[:, 2].where(~faint, CODE)
    x = torch.cat((theta + randn(600, 1), noise), dim=1)
    flow = flow_nn(columns=None)(theta, x)
    assert flow.embedding_net[0].kept.tolist() == [0, 3]
    assert missed(flow, theta, x, torch.arange(600)) == []
    # Features, and the indicator.
    assert flow.embedding_net(x[:2]).shape == (2, 3)
