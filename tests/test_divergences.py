"""The divergences against closed forms on Gaussians, in float64."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence
from torch.nn.functional import cross_entropy as softmax_cross_entropy

from sbi_jeffreys.divergences import (
    balance_heuristic,
    cross_entropy,
    effective_sample_size,
    log_partition,
    log_variance,
    ranking_nce,
    reverse_kl,
)

# Sums of a few float64 numbers of order one to ten: rounding stays below this.
EXACT = {"rtol": 0.0, "atol": 1e-12}

# (location, scale) of the first and of the second Gaussian.
PAIRS = [
    pytest.param((0.0, 1.0), (0.0, 1.0), id="same"),
    pytest.param((0.3, 1.0), (-0.5, 1.0), id="shifted"),
    pytest.param((0.0, 0.2), (0.0, 1.0), id="narrow-in-wide"),
    pytest.param((0.0, 1.5), (0.4, 0.5), id="wide-in-narrow"),
]
LOG_Z = [0.0, -3.0, 7.5]


def normal(parameters):
    location, scale = parameters
    return Normal(torch.tensor(location, dtype=torch.float64), scale)


def two_points(p):
    """Gauss-Hermite rule with equal weights: exact to degree 3; log densities have degree 2."""
    return p.mean + p.stddev * torch.tensor([-1.0, 1.0], dtype=torch.float64)


def six_points(p):
    """The three-point rule, weights 1/6, 4/6, 1/6 by repetition: exact to degree 5."""
    z = torch.tensor([-math.sqrt(3), 0, 0, 0, 0, math.sqrt(3)], dtype=torch.float64)
    return p.mean + p.stddev * z


def assert_mean(values, expected, sigmas=5.0):
    """The mean of independent unbiased estimates, within its measured standard error."""
    error = values.std() / math.sqrt(len(values))
    # Without noise the comparison would be of zero with rounding.
    assert abs(values.mean() - expected) <= sigmas * error + 1e-12


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_cross_entropy_is_the_forward_kl_and_the_entropy(first, second):
    pi, p = normal(first), normal(second)
    log_prob = p.log_prob(two_points(pi))
    torch.testing.assert_close(
        cross_entropy(log_prob).mean(), kl_divergence(pi, p) + pi.entropy(), **EXACT
    )


@pytest.mark.parametrize("log_z", LOG_Z)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_reverse_kl_with_a_partition_function(first, second, log_z):
    p, q = normal(first), normal(second)
    theta = two_points(p)
    expected = kl_divergence(p, q)
    unnormalized = q.log_prob(theta) + log_z
    z = torch.tensor([log_z], dtype=torch.float64)
    reverse = reverse_kl(p.log_prob(theta)[:, None], unnormalized[:, None], z)
    torch.testing.assert_close(reverse, expected.reshape(1), **EXACT)


def test_reverse_kl_keeps_conditions_apart():
    p = Normal(torch.zeros(3, dtype=torch.float64), 1.0)
    q = Normal(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), 2.0)
    log_z = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    theta = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 3)
    found = reverse_kl(p.log_prob(theta), q.log_prob(theta) + log_z, log_z)
    torch.testing.assert_close(found, kl_divergence(p, q), **EXACT)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_log_variance_is_half_the_variance(first, second):
    p, q = normal(first), normal(second)
    # r = a z² + b z + c with z standard normal, whose variance is 2 a² + b².
    ratio = p.stddev / q.stddev
    shift = (p.mean - q.mean) / q.stddev
    a, b = 0.5 * (ratio**2 - 1), ratio * shift
    theta = six_points(p)[:, None]
    found = log_variance(p.log_prob(theta), q.log_prob(theta) + 3.0)
    # The rule has the population's variance; the unbiased one of six points is 6/5 of it.
    expected = 0.5 * (2 * a**2 + b**2) * 6 / 5
    torch.testing.assert_close(found, expected.reshape(1), **EXACT)


@pytest.mark.parametrize("draws", [2, 3, 8])
@pytest.mark.parametrize(("first", "second"), PAIRS[1:])
def test_gradient_of_log_variance_is_that_of_the_kl(first, second, draws):
    q = normal(second)
    conditions = 40_000
    # One copy of the parameters per condition gives as many independent gradients.
    mean = torch.full((conditions,), first[0], dtype=torch.float64, requires_grad=True)
    log_scale = torch.full(
        (conditions,), math.log(first[1]), dtype=torch.float64, requires_grad=True
    )
    p = Normal(mean, log_scale.exp())
    theta = p.sample((draws,))
    loss = log_variance(p.log_prob(theta), q.log_prob(theta) + 4.0)
    by_mean, by_log_scale = torch.autograd.grad(loss.sum(), (mean, log_scale))

    exact = torch.tensor([first[0], math.log(first[1])], dtype=torch.float64, requires_grad=True)
    kl = kl_divergence(Normal(exact[0], exact[1].exp()), q)
    expected = torch.autograd.grad(kl, exact)[0]
    assert_mean(by_mean, expected[0])
    assert_mean(by_log_scale, expected[1])


def test_gradient_of_log_variance_vanishes_where_the_models_agree():
    mean = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    p = Normal(mean, log_scale.exp())
    theta = p.sample((5, 3))
    q = Normal(mean.detach(), log_scale.detach().exp())
    constant = torch.tensor([-2.0, 0.0, 9.0], dtype=torch.float64)
    loss = log_variance(p.log_prob(theta), q.log_prob(theta) + constant)
    torch.testing.assert_close(loss, torch.zeros_like(loss), **EXACT)
    for gradient in torch.autograd.grad(loss.sum(), (mean, log_scale)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), **EXACT)


def test_log_variance_with_a_limit_is_the_plain_one_below_it():
    r = torch.randn(8, 50, dtype=torch.float64)
    deviation = (r - r.mean(dim=0)).abs().max().item()
    shift = torch.randn(50, dtype=torch.float64)
    plain = log_variance(r, shift.expand(8, 50))
    found = log_variance(r, shift.expand(8, 50), limit=deviation + 1e-6)
    torch.testing.assert_close(found, plain, **EXACT)
    below = log_variance(r, shift.expand(8, 50), limit=0.5 * deviation)
    assert (below <= plain + 1e-12).all()
    assert (below < plain - 1e-3).any()


def test_log_variance_continues_linearly_beyond_its_limit():
    # Deviations of 2 samples are plus and minus half their distance h: 2 L (h - L / 2) / (2 - 1).
    half = torch.tensor([2.0, 5.0, 100.0, 1e6], dtype=torch.float64)
    found = log_variance(torch.stack((half, -half)), torch.full((2, 4), 7.0).double(), limit=3.0)
    expected = torch.where(half < 3, half.square(), 6 * (half - 1.5))
    # Rounding of 6e6.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0.1, 3.0])
@pytest.mark.parametrize("draws", [2, 4, 9])
def test_gradient_of_log_variance_is_bounded_by_its_limit(draws, limit):
    scale = torch.logspace(-3, 6, 40, dtype=torch.float64)
    r = (scale * torch.randn(draws, 40, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(log_variance(r, torch.zeros_like(r), limit=limit).sum(), r)
    # Each deviation pulls by the limit at most, and so does their mean that is taken off.
    assert (gradient.abs() <= 2 * limit / (draws - 1) + 1e-12).all()
    assert gradient[:, -1].abs().max() > 0.5 * limit / (draws - 1)
    # A constant in r changes nothing.
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(40, dtype=torch.float64), **EXACT)
    small = (r.detach() - r.detach().mean(dim=0)) / (draws - 1)
    torch.testing.assert_close(gradient[:, 0], small[:, 0], **EXACT)


@pytest.mark.parametrize("log_z", LOG_Z)
def test_log_partition_without_noise_under_the_exact_proposal(log_z):
    q = normal((0.3, 0.6))
    theta = q.sample((7, 4))
    found = log_partition(q.log_prob(theta) + log_z, q.log_prob(theta))
    torch.testing.assert_close(found, torch.full((4,), log_z, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("log_z", LOG_Z)
@pytest.mark.parametrize("proposal", [(0.0, 1.5), (0.8, 1.0)], ids=["too wide", "shifted"])
def test_log_partition_under_a_mismatched_proposal(proposal, log_z):
    q, g = normal((0.0, 1.0)), normal(proposal)
    theta = g.sample((2000, 200))
    found = log_partition(q.log_prob(theta) + log_z, g.log_prob(theta))
    # Z itself is estimated without bias; its logarithm is lower by half the relative variance.
    assert_mean((found - log_z).exp(), 1.0)
    few = log_partition(q.log_prob(theta[:4]), g.log_prob(theta[:4]))
    assert few.mean() < -2 * few.std() / math.sqrt(len(few))


def test_log_partition_survives_large_numbers():
    log_weights = torch.tensor([[-2000.0, 2000.0], [-2000.0, 2000.0]], dtype=torch.float64)
    found = log_partition(log_weights, torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(found, log_weights[0])


@pytest.mark.parametrize("counts", [(1, 1), (3, 1), (10, 90)])
def test_balance_heuristic_is_the_density_of_the_pool(counts):
    locations = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    scales = torch.tensor([0.5, 1.0], dtype=torch.float64)
    first, second = Normal(locations[0], scales[0]), Normal(locations[1], scales[1])
    theta = torch.linspace(-6, 8, 50, dtype=torch.float64)[:, None]
    pool = MixtureSameFamily(
        Categorical(torch.tensor(counts, dtype=torch.float64)), Normal(locations, scales)
    )
    found = balance_heuristic((first.log_prob(theta), second.log_prob(theta)), counts)
    torch.testing.assert_close(found, pool.log_prob(theta), **EXACT)


def test_balance_heuristic_ignores_a_proposal_without_draws():
    log_prob = torch.randn(5, 2, dtype=torch.float64)
    never = torch.full_like(log_prob, math.inf)
    found = balance_heuristic((log_prob, never), (5, 0))
    torch.testing.assert_close(found, log_prob, **EXACT)


def test_balance_heuristic_outside_of_one_support():
    log_prob = torch.randn(5, 2, dtype=torch.float64)
    outside = torch.full_like(log_prob, -math.inf)
    found = balance_heuristic((log_prob, outside), (1, 1))
    torch.testing.assert_close(found, log_prob - math.log(2), **EXACT)


def test_balance_heuristic_wants_one_count_for_each_proposal():
    with pytest.raises(ValueError, match="zip"):
        balance_heuristic((torch.zeros(2, 2), torch.zeros(2, 2)), (2,))


def test_multiple_importance_sampling_finds_what_one_proposal_misses():
    q, flow, base = normal((0.0, 1.0)), normal((1.5, 0.3)), normal((0.0, 3.0))
    theta = torch.cat((flow.sample((300, 400)), base.sample((100, 400))))
    pool = balance_heuristic((flow.log_prob(theta), base.log_prob(theta)), (300, 100))
    assert_mean(log_partition(q.log_prob(theta), pool).exp(), 1.0)


@pytest.mark.parametrize(("target", "proposal"), [(1.0, 1.0), (0.5, 1.0), (1.0, 1.2)], ids=str)
def test_effective_sample_size_of_gaussians(target, proposal):
    q, p = normal((0.0, target)), normal((0.0, proposal))
    theta = p.sample((20_000, 50))
    found = effective_sample_size(q.log_prob(theta) - p.log_prob(theta))
    # 1 / (1 + chi²(q || p)), and 1 + chi² is the integral of q² / p.
    second_moment = proposal / target**2 / math.sqrt(2 / target**2 - 1 / proposal**2)
    # The ratio of two means is biased by O(1 / 20 000).
    error = 5 * found.std() / math.sqrt(len(found)) + 1e-4
    assert abs(found.mean() - 1 / second_moment) < error


def test_effective_sample_size_where_no_draw_has_any_weight():
    """All outside of the prior's support, as those of a flow that leaks may be."""
    weights = torch.tensor([[-math.inf, 0.0], [-math.inf, 0.0]])
    assert effective_sample_size(weights).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("shift", [0.0, -1500.0, 1500.0])
def test_effective_sample_size_at_its_ends(shift):
    equal = torch.zeros(10, 1, dtype=torch.float64)
    one = torch.full((10, 1), -math.inf, dtype=torch.float64)
    one[3] = 0.0
    found = effective_sample_size(torch.cat((equal, one), dim=1) + shift)
    # A rounding error of 1500 in the exponent is 2e-13.
    torch.testing.assert_close(
        found, torch.tensor([1.0, 0.1], dtype=torch.float64), rtol=0, atol=1e-11
    )


@pytest.fixture
def ranking():
    """Data from N(0.5, 0.6²) among 15 draws of N(0, 1), and the loss of quadratic log ratios."""
    generator = torch.Generator().manual_seed(1)
    conditions = 20_000
    data = 0.5 + 0.6 * torch.randn(1, conditions, dtype=torch.float64, generator=generator)
    base = torch.randn(15, conditions, dtype=torch.float64, generator=generator)
    theta = torch.cat((data, base))
    # log N(θ; 0.5, 0.6²) - log N(θ; 0, 1) = a θ² + b θ + c
    true = torch.tensor([0.5 - 0.5 / 0.36, 0.5 / 0.36], dtype=torch.float64)

    def loss(a, b):
        return ranking_nce(a * theta.square() + b * theta)

    return true, loss, conditions


def test_ranking_nce_is_stationary_at_the_true_ratio(ranking):
    true, loss, conditions = ranking
    parameters = true[:, None].expand(2, conditions).clone().requires_grad_()
    gradient = torch.autograd.grad(loss(*parameters).sum(), parameters)[0]
    for row in gradient:
        assert row.std() > 1e-3
        assert_mean(row, 0.0)


@pytest.mark.parametrize("step", [(0.3, 0.0), (-0.3, 0.0), (0.0, 0.4), (0.0, -0.4), (0.5, -0.7)])
def test_ranking_nce_is_higher_elsewhere(ranking, step):
    true, loss, conditions = ranking
    higher = loss(*(true + torch.tensor(step, dtype=torch.float64))) - loss(*true)
    assert higher.mean() > 5 * higher.std() / math.sqrt(conditions)


def test_ranking_nce_is_a_cross_entropy():
    log_weights = 3 * torch.randn(9, 20, dtype=torch.float64)
    expected = softmax_cross_entropy(
        log_weights.T, torch.zeros(20, dtype=torch.long), reduction="none"
    )
    torch.testing.assert_close(ranking_nce(log_weights), expected, **EXACT)


def test_ranking_nce_is_bounded_and_blind_to_functions_of_x():
    log_weights = (50 * torch.randn(6, 500, dtype=torch.float64)).requires_grad_()
    loss = ranking_nce(log_weights)
    assert (loss >= 0).all()
    shift = 10 * torch.randn(500, dtype=torch.float64)
    # A rounding error of numbers of order 100.
    torch.testing.assert_close(ranking_nce(log_weights + shift), loss, rtol=0, atol=1e-11)
    # Each row of the gradient is the difference of two distributions over the slots.
    gradient = torch.autograd.grad(loss.sum(), log_weights)[0]
    assert gradient.abs().sum(dim=0).max() <= 2 + 1e-12


def test_ranking_nce_of_one_slot_among_equals():
    found = ranking_nce(torch.zeros(8, 3, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((3,), math.log(8), dtype=torch.float64), **EXACT)


def test_effective_sample_size_of_infinite_weights():
    log_weights = torch.tensor([[torch.inf, torch.inf], [0.0, torch.inf], [-torch.inf, 1.0]])
    # They share all there is: one of three draws, two of three.
    torch.testing.assert_close(effective_sample_size(log_weights), torch.tensor([1 / 3, 2 / 3]))
