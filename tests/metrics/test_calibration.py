"""Coverage and leakage of estimators whose values are known."""

import math

import pytest
import torch
from sbi.inference import DirectPosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from scipy.stats import norm
from torch.distributions import ExpTransform, Independent, Normal, TransformedDistribution, Uniform

from sbi_jeffreys.metrics import coverage, leakage

SIMULATIONS = 500
BAND = 1.95 / math.sqrt(SIMULATIONS)  # Dvoretzky-Kiefer-Wolfowitz, probability 0.001


class ConjugatePosterior:
    """theta ~ N(0, I), x ~ N(theta, I): theta | x ~ N(x / 2, I / 2), of a width to choose."""

    def __init__(self, width=1.0):
        self.width = width * math.sqrt(0.5)

    def sample_batched(self, sample_shape, x, show_progress_bars):
        return x / 2 + self.width * torch.randn(*sample_shape, *x.shape)

    def potential(self, theta, x):
        return Normal(x / 2, self.width).log_prob(theta).sum(dim=-1)


@pytest.fixture(scope="module")
def simulations():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(SIMULATIONS, 2, generator=generator)
    return theta, theta + torch.randn(SIMULATIONS, 2, generator=generator)


def test_exact_posterior_is_calibrated(simulations):
    result = coverage(ConjugatePosterior(), *simulations, draws=200)
    assert result.ranks.shape == (SIMULATIONS, 2)
    assert 0 <= result.ranks.min() < result.ranks.max() <= 200
    assert (result.p_values > 0.001).all()
    assert (result.highest_density - result.levels).abs().max() < BAND
    assert (result.tarp - result.levels).abs().max() < BAND


@pytest.mark.parametrize(("width", "sign"), [(0.5, -1), (2.0, 1)])
def test_width_moves_coverage_as_far_as_it_should(simulations, width, sign):
    result = coverage(ConjugatePosterior(width), *simulations, draws=200)
    # A region of level a is a disc with squared radius -2 log(1 - a) widths^2.
    expected = 1 - (1 - result.levels) ** (width**2)
    assert (result.highest_density - expected).abs().max() < BAND
    assert (result.p_values < 0.001).all()
    assert sign * (result.tarp - result.levels).mean() > 0.03
    assert result.tarp[0] == 0
    assert result.tarp[-1] == pytest.approx(1)


def test_seed_decides_coverage_and_global_state_is_left_alone(simulations):
    theta, x = (value[:100] for value in simulations)
    state = torch.get_rng_state()
    one, same, other = (
        coverage(ConjugatePosterior(), theta, x, draws=100, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.ranks, same.ranks)
    assert torch.equal(one.tarp, same.tarp)
    assert not torch.equal(one.ranks, other.ranks)


def test_double_precision_is_taken(simulations):
    theta, x = (value[:100] for value in simulations)
    found, double = (
        coverage(ConjugatePosterior(), *pair, draws=100)
        for pair in ((theta, x), (theta.double(), x.double()))
    )
    assert torch.equal(found.ranks, double.ranks)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t, x: (t.index_fill(0, torch.arange(3), torch.nan), x),
            "theta has 3 rows with NaN",
        ),
        (lambda t, x: (t, x.index_fill(0, torch.tensor([5]), torch.inf)), "x has 1 rows with NaN"),
        (lambda t, x: (t[:, :1], x), "theta has 1 parameters, draws of the posterior have 2"),
        (lambda t, x: (t.repeat(1, 2), x), "theta has 4 parameters"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(simulations, damage, message):
    theta, x = damage(*(value[:100] for value in simulations))
    with pytest.raises(ValueError, match=message):
        coverage(ConjugatePosterior(), theta, x, draws=100)


class NormalEstimator:
    """theta | x ~ N(x, I), of which some draws fail."""

    condition_shape = torch.Size([1])

    def __init__(self, failures=0):
        self.failures = failures

    def sample(self, shape, condition):
        theta = condition + torch.randn(*shape, *condition.shape)
        theta[: self.failures] = math.nan
        return theta


PRIORS = {"box": BoxUniform(-torch.ones(1), torch.ones(1)), "whole": Normal(0.0, 1.0)}


def test_leakage_is_the_mass_outside():
    torch.manual_seed(0)
    x = torch.tensor([[0.0], [1.0], [5.0]])
    values = leakage(NormalEstimator(), PRIORS["box"], x, draws=20_000)
    expected = 1 - (norm.cdf(1 - x) - norm.cdf(-1 - x))
    assert values.tolist() == pytest.approx(expected[:, 0].tolist(), abs=0.015)


def test_leakage_may_be_total():
    torch.manual_seed(0)
    far = BoxUniform(100 * torch.ones(1), 101 * torch.ones(1))
    assert leakage(NormalEstimator(), far, torch.zeros(2, 1), draws=50).tolist() == [1.0, 1.0]


def test_leakage_counts_failed_draws():
    values = leakage(NormalEstimator(failures=25), PRIORS["whole"], torch.zeros(2, 1), draws=100)
    assert values.tolist() == [0.25, 0.25]


def test_leakage_of_an_estimator_of_sbi():
    torch.manual_seed(0)
    theta, x = torch.rand(100, 2), torch.rand(100, 3)
    estimator = posterior_nn("mdn")(theta, x)
    values = leakage(estimator, BoxUniform(torch.zeros(2), torch.ones(2)), x[:4], draws=50)
    assert values.shape == (4,)
    assert ((values > 0) & (values <= 1)).all()


def test_leakage_of_data_of_other_types_or_of_none():
    torch.manual_seed(0)
    estimator = posterior_nn("mdn")(torch.rand(100, 2), torch.rand(100, 3))
    box = BoxUniform(torch.zeros(2), torch.ones(2))
    assert leakage(estimator, box, torch.rand(4, 3).double(), draws=50).shape == (4,)
    assert leakage(estimator, box, torch.rand(0, 3)).shape == (0,)
    with pytest.raises(TypeError, match=r"DirectPosterior.*\.posterior_estimator"):
        leakage(DirectPosterior(estimator, box), box, torch.rand(4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, x: coverage(None, t[:99], x[:99]), "number of simulations is 99"),
        (lambda t, x: coverage(None, t, x, draws=10), "number of draws is 10"),
        (lambda t, x: coverage(None, t, x, levels=1), "number of levels is 1"),
        (lambda t, x: coverage(None, t, x[:9]), "x as many rows"),
        (lambda t, x: leakage(NormalEstimator(), PRIORS["box"], x[0, :1]), r"x\.unsqueeze\(0\)"),
        (lambda t, x: leakage(NormalEstimator(), PRIORS["box"], x), r"x must have shape \(B, 1\)"),
        (
            lambda t, x: leakage(NormalEstimator(), PRIORS["box"], x[:, :1], draws=0),
            "draws is 0",
        ),
    ],
)
def test_errors(simulations, call, message):
    with pytest.raises(ValueError, match=message):
        call(*simulations)


class Draws:
    condition_shape = torch.Size((1,))

    def sample(self, shape, x):
        return torch.tensor([0.5, 2.0, 5.0, torch.nan]).view(4, 1, 1)


def test_what_has_no_density_or_is_no_number_has_leaked():
    # From 1 to e, and all positive numbers are its support.
    log_uniform = TransformedDistribution(
        Uniform(torch.zeros(1), torch.ones(1), validate_args=False), [ExpTransform()]
    )
    prior = Independent(log_uniform, 1, validate_args=False)
    assert leakage(Draws(), prior, torch.zeros(1, 1), draws=4).tolist() == [0.75]
    box = Independent(Uniform(-torch.ones(1), 3 * torch.ones(1)), 1)
    assert leakage(Draws(), box, torch.zeros(1, 1), draws=4).tolist() == [0.5]
