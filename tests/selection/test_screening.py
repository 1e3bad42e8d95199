"""Which columns of x are looked at."""

import pytest
import torch
from noise import NOISE, among_noise
from scipy.stats import kstest
from torch import rand, randn

from sbi_jeffreys.selection.screening import _chance, informative


def locations(n):
    theta = rand(n, 3)
    return among_noise(theta, theta + 0.1 * randn(n, 3))


def scales(n):
    theta = 0.2 + rand(n, 2)
    return among_noise(theta, theta * randn(n, 2))


def a_bump(n):
    """A column that is one in a twentieth of a parameter's range."""
    theta = rand(n, 2)
    return among_noise(theta, theta[:, :1] + 0.1 * randn(n, 1), (theta[:, 1:] > 0.95).float())


def a_gauge_of_noise(n):
    """The second column is independent of theta, and says what the first one's noise was."""
    theta, noise = randn(n, 1), randn(n, 1)
    return among_noise(theta, theta + noise, noise + 0.1 * randn(n, 1))


def a_gauge_of_gain(n):
    theta, gain = randn(n, 1), randn(n, 1)
    return among_noise(theta, theta * gain.exp(), gain + 0.1 * randn(n, 1))


def a_sign(n):
    """The second column is the sign with which a parameter is in the third."""
    theta, sign = randn(n, 2), randn(n, 1).sign()
    shown = sign * theta[:, 1:] + 0.1 * randn(n, 1)
    return among_noise(theta, theta[:, :1] + 0.1 * randn(n, 1), sign, shown)


def correlated(n):
    """Columns that are independent of theta one by one: a stationary process."""
    theta = torch.cat((2 * rand(n, 1) - 1, randn(n, 1)), dim=1)
    columns = [randn(n)]
    for _ in range(29):
        noise = (1 - theta[:, 0] ** 2).sqrt() * randn(n)
        columns.append(theta[:, 0] * columns[-1] + noise)
    return theta, torch.stack((theta[:, 1] + randn(n), *columns), dim=1)


def many_say_little(n):
    theta = randn(n, 1)
    return among_noise(theta, theta + randn(n, 1), 0.1 * theta + randn(n, 50))


@pytest.mark.parametrize("n", [300, 1000])
@pytest.mark.parametrize(
    ("simulate", "num"),
    [
        (locations, 3),
        (scales, 2),
        (a_bump, 2),
        (a_gauge_of_noise, 2),
        (a_gauge_of_gain, 2),
        (a_sign, 3),
    ],
)
def test_what_says_something_of_theta_is_kept_and_noise_is_not(simulate, num, n):
    found = [informative(*simulate(n)).tolist() for _ in range(5)]
    for columns in found:
        assert columns[:num] == list(range(num))
    # By chance a column of noise is found now and then, and a group kept in one of twenty runs.
    assert sum(len(columns) <= num + 2 for columns in found) >= 4


def scales_say_little(n):
    theta = randn(n, 1)
    return theta, torch.cat((theta + randn(n, 1), (1 + 0.15 * theta) * randn(n, 50)), dim=1)


def many_gauges_of_noise(n):
    """Each is a fiftieth of the first column's noise, which only regression on all tells."""
    theta, noise = randn(n, 1), randn(n, 50)
    return theta, torch.cat((theta + noise.sum(dim=1, keepdim=True) / 50**0.5, noise), dim=1)


@pytest.mark.parametrize("n", [300, 1000])
@pytest.mark.parametrize(
    "simulate",
    [
        correlated,
        many_say_little,
        scales_say_little,
        many_gauges_of_noise,
    ],
)
def test_columns_that_say_something_together_are_all_kept(simulate, n):
    theta, x = simulate(n)
    assert len(informative(theta, x)) == x.shape[1]


@pytest.mark.parametrize("num", [501, 3000])
def test_of_very_many_columns_few_are_kept(num):
    theta = rand(400, 3)
    x = torch.cat((theta + 0.1 * randn(400, 3), randn(400, num)), dim=1)
    found = informative(theta, x).tolist()
    assert found[:3] == [0, 1, 2]
    assert len(found) <= 6


def test_very_many_columns_that_say_something_are_all_kept():
    theta = randn(1000, 1)
    # One by one, more than any regression takes; and together, none by itself.
    assert len(informative(theta, theta + randn(1000, 600))) == 600
    x = torch.cat((theta + randn(1000, 1), 0.05 * theta + randn(1000, 600)), dim=1)
    assert len(informative(theta, x)) == 601


def test_columns_that_share_what_theta_scales_are_all_kept():
    """They differ from noise in products of two of them only, of which each says too little."""
    theta, shared = randn(1000, 1), randn(1000, 1)
    others = randn(1000, 50) + 0.25 * theta.abs().sqrt() * shared
    assert len(informative(theta, torch.cat((theta + randn(1000, 1), others), dim=1))) == 51


def test_rows_in_an_order_and_ties_do_not_matter():
    """Ranks of equal values must not follow the order of the rows, which may be theta's."""
    theta, x = locations(500)
    x[:, 3:] = x[:, 3:].round()
    order = theta[:, 0].argsort()
    found = informative(theta, x)
    assert found.tolist()[:3] == [0, 1, 2]
    assert len(found) <= 5
    assert informative(theta[order], x[order]).tolist() == found.tolist()


@pytest.mark.parametrize("unit", [1e-21, 1e16])
def test_units_rows_with_nan_and_columns_that_never_vary(unit):
    theta, x = locations(300)
    x[:, -1] = 1.0
    expected = informative(theta, x).tolist()
    theta, x = torch.cat((rand(20, 3), theta)), torch.cat((randn(20, x.shape[1]), x))
    x[torch.arange(20), torch.arange(20)] = torch.nan
    assert len(expected) < 10
    assert informative(theta, unit * x).tolist() == expected


def test_columns_that_never_vary_are_no_reason_to_keep_others():
    theta, x = rand(300, 2), torch.ones(300, 30)
    x[:, :2] = theta
    assert informative(theta, x).tolist() == [0, 1]


@pytest.mark.parametrize(("n", "c"), [(300, 1), (79, 50), (2, 30), (0, 30)])
def test_one_column_and_few_rows_are_left_alone(n, c):
    theta, x = rand(n, 2), randn(n, c)
    # With nothing but noise all columns are kept in any case.
    x[:, 0] = theta[:, 0]
    assert informative(theta, x).tolist() == list(range(c))


def test_nothing_that_depends_is_no_reason_to_look_at_nothing():
    assert len(informative(rand(300, 2), randn(300, 30))) == 30


def test_no_random_numbers_are_drawn():
    theta, x = locations(300)
    before = torch.get_rng_state()
    informative(theta, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_moments_of_the_criterion_are_those_under_permutations():
    """All 720 permutations of six rows have this mean and variance, up to rounding."""
    from itertools import permutations

    from scipy.stats import gamma

    K, L = (
        centred @ centred.T for centred in (z - z.mean(dim=0) for z in (randn(6, 3), rand(6, 2)))
    )
    K, L = K.double(), L.double()
    found = torch.stack([(K * L[list(p)][:, list(p)]).sum() for p in permutations(range(6))])
    mean, variance = found.mean().item(), found.var(correction=0).item()
    expected = gamma.sf((K * L).sum().item(), mean**2 / variance, scale=variance / mean)
    assert _chance(K, L) == pytest.approx(expected, rel=1e-6)


def test_the_chance_of_independent_data_is_uniform():
    """Kolmogorov and Smirnov's test, of a level of a thousandth."""

    def gram(columns):
        columns = columns - columns.mean(dim=0)
        return columns @ columns.T

    chances = [_chance(gram(randn(100, 8)), gram(rand(100, 5))) for _ in range(300)]
    assert kstest(chances, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("test", ["left", "pairs"])
def test_what_is_kept_in_the_end_may_be_all(test):
    """Of two columns the second says what the noise of the first was, or the sign of its effect."""
    theta, noise = randn(300, 1), randn(300, 1)
    x = (theta + noise, noise) if test == "left" else (theta.abs() * noise.sign(), noise.sign())
    assert informative(theta, torch.cat(x, dim=1)).tolist() == [0, 1]


def test_one_of_two_columns():
    theta = rand(300, 2)
    assert informative(theta, torch.stack((theta[:, 0], randn(300)), dim=1)).tolist() == [0]


def error_bars(n):
    """Squares, and columns that say how noisy they are: the mean of theta given x is zero."""
    theta, scale = 2 * rand(n, 2) - 1, 0.2 * randn(n, 2).exp()
    return among_noise(theta, theta**2 + scale * randn(n, 2), scale)


def far_away(n):
    theta = randn(n, 2)
    x = theta + 0.1 * randn(n, 2)
    x[n // 2, 1] = 1e12
    return among_noise(theta, x)


def rare_events(n):
    """Thirty standard deviations away in two percent of the rows, where a parameter is large."""
    theta = rand(n, 2)
    event = ((theta[:, 1:] > 0.9) & (rand(n, 1) < 0.2)).float()
    return among_noise(theta, theta[:, :1] + 0.1 * randn(n, 1), randn(n, 1) + 30 * event)


@pytest.mark.parametrize(("simulate", "num"), [(error_bars, 4), (far_away, 2), (rare_events, 2)])
def test_error_bars_outliers_and_rare_events_are_kept(simulate, num):
    found = [informative(*simulate(1000)).tolist() for _ in range(5)]
    assert all(columns[:num] == list(range(num)) for columns in found)
    assert sum(len(columns) <= num + 2 for columns in found) >= 4


def test_rare_ones_are_noise_like_any_other():
    """Beside a parameter that columns show; a product of the two varies as that does."""
    theta = rand(300, 3)
    found = []
    for _ in range(5):
        rare = (rand(300, NOISE) < 0.02).float()
        found.append(informative(theta, torch.cat((theta + 0.1 * randn(300, 3), rare), dim=1)))
    assert sum(len(columns) <= 4 for columns in found) >= 4


def test_rows_ordered_by_theta_are_sampled():
    theta, x = locations(2500)
    order = theta[:, 0].argsort()
    assert informative(theta[order], x[order]).tolist()[:3] == [0, 1, 2]
    assert len(informative(theta[order], x[order])) <= 5


def test_rows_for_tests_of_pairs_are_sampled():
    """The sign of what a parameter does in its upper half: the first thousand rows say nothing."""
    theta, sign = randn(2500, 2), randn(2500, 1).sign()
    theta = theta[theta[:, 1].argsort()]
    shown = sign * theta[:, 1:].clamp_min(0) + 0.1 * randn(2500, 1)
    theta, x = among_noise(theta, theta[:, :1] + 0.1 * randn(2500, 1), sign, shown)
    assert informative(theta, x).tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    "as_given",
    [
        lambda theta, x: (theta.double(), x),
        lambda theta, x: (theta, x.double()),
        lambda theta, x: ((10 * theta).long(), (10 * x).int()),
        lambda theta, x: (theta.requires_grad_(), x.clone().requires_grad_()),
        lambda theta, x: (theta.index_fill(0, torch.tensor([3]), torch.nan), x),
    ],
    ids=["double theta", "double x", "integers", "gradients", "NaN in theta"],
)
def test_other_types_gradients_and_bad_rows(as_given):
    assert informative(*as_given(*locations(300))).tolist()[:3] == [0, 1, 2]
