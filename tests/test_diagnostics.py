"""The diagnostics of the proxy against a conjugate Gaussian whose log Z is known."""

import math

import pytest
import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform, kl_divergence

from sbi_jeffreys.base import Base
from sbi_jeffreys.diagnostics import diagnose_proxy
from sbi_jeffreys.estimator import JeffreysEstimator

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
NOISE = 0.5
ROWS = 40


class Gaussian(ConditionalDensityEstimator):
    """N(slope x, scale² I)."""

    def __init__(self, slope, scale):
        super().__init__(nn.Identity(), torch.Size([2]), torch.Size([2]))
        self.slope = nn.Parameter(torch.tensor(slope))
        self.scale = scale

    def given(self, condition):
        return Independent(Normal(self.slope * condition, self.scale), 1)

    def log_prob(self, input, condition, **kwargs):
        return self.given(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return self.given(condition).sample(sample_shape)


class Likelihood(nn.Module):
    """log N(x; theta, NOISE²) + shift x_0: the exact proxy, times a factor that depends on x."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, theta, context):
        log_likelihood = Independent(Normal(theta, NOISE), 1).log_prob(context)
        return log_likelihood + self.shift * context[..., 0]


class Narrow(nn.Module):
    """log N(theta; 0, 0.003²), up to a constant."""

    def forward(self, theta, context):
        return -0.5 * (theta / 0.003).square().sum(dim=-1) + 0 * context.sum(dim=-1)


class Flat(nn.Module):
    """f = 0: the proxy is its base."""

    def forward(self, theta, context):
        return (0 * theta.sum(dim=-1)) + 0 * context.sum(dim=-1)


def make(flow, network, prior=PRIOR):
    theta = prior.sample((100,))
    estimator = JeffreysEstimator(
        flow, theta, theta, base=Base(prior, theta), build_proxy=lambda theta, context: network
    )
    # The proxy is the network alone, without the linear posterior that it starts from.
    estimator.proxy.network = network
    # The context is x itself.
    estimator._x_mean.zero_()
    estimator._x_std.fill_(1.0)
    return estimator


def posterior(x):
    """theta | x for theta ~ N(0, I) and x ~ N(theta, NOISE² I)."""
    variance = 1 / (1 + 1 / NOISE**2)
    return Independent(Normal(x * variance / NOISE**2, math.sqrt(variance)), 1)


def assert_mean_zero(errors):
    """Each error is one x's; log Z from 2 S draws is biased by its variance over 2."""
    tolerance = 5 * errors.std() / math.sqrt(len(errors)) + errors.var() + 1e-5
    assert abs(errors.mean()) < tolerance


SHIFTS = pytest.mark.parametrize("shift", [0.0, 1.5])


@SHIFTS
@pytest.mark.parametrize(
    ("slope", "scale"),
    [
        pytest.param(0.8, math.sqrt(0.2), id="exact"),
        pytest.param(0.7, 0.6, id="too wide"),
        pytest.param(0.8, 0.2, id="too narrow"),
        pytest.param(-0.5, 0.4, id="elsewhere"),
    ],
)
def test_log_partition_and_nll(slope, scale, shift):
    theta = PRIOR.sample((ROWS,))
    x = theta + NOISE * torch.randn(ROWS, 2)
    flow = Gaussian(slope, scale)
    found = diagnose_proxy(make(flow, Likelihood(shift)), theta, x, num_draws=3000)
    evidence = Independent(Normal(torch.zeros(2), math.sqrt(1 + NOISE**2)), 1).log_prob(x)
    log_z = evidence + shift * x[:, 0]
    errors = found.log_partition - log_z
    assert_mean_zero(errors)
    # Half of the draws come from the base, whose relative weights have a variance below 30.
    assert errors.abs().max() < 5 * math.sqrt(30 / 3000)
    # The same error enters the likelihood: the normalised proxy is the posterior.
    nll = found.nll - errors
    torch.testing.assert_close(nll, -posterior(x).log_prob(theta), rtol=1e-4, atol=1e-4)
    for values in found:
        assert values.shape == (ROWS,)
        assert not values.requires_grad


@SHIFTS
@pytest.mark.parametrize(("slope", "scale"), [(0.8, math.sqrt(0.2)), (0.7, 0.6), (0.8, 0.3)])
def test_reverse_kl(slope, scale, shift):
    theta = PRIOR.sample((ROWS,))
    x = theta + NOISE * torch.randn(ROWS, 2)
    flow = Gaussian(slope, scale)
    found = diagnose_proxy(make(flow, Likelihood(shift)), theta, x, num_draws=3000)
    assert_mean_zero(found.reverse_kl - kl_divergence(flow.given(x), posterior(x)).detach())


@pytest.mark.parametrize("scale", [math.sqrt(0.2), 0.5, 0.8])
def test_effective_sample_size(scale):
    x = torch.randn(ROWS, 2)
    found = diagnose_proxy(make(Gaussian(0.8, scale), Likelihood(0.7)), x, x, num_draws=4000)
    # 1 + chi² of two Gaussians of the same mean, in two dimensions
    target = math.sqrt(0.2)
    second_moment = (scale / target**2 / math.sqrt(2 / target**2 - 1 / scale**2)) ** 2
    assert_mean_zero(found.effective_sample_size - 1 / second_moment)


def test_half_of_the_draws_come_from_the_base():
    """A flow that misses the posterior altogether does not spoil log Z."""
    x = torch.randn(ROWS, 2)
    found = diagnose_proxy(make(Gaussian(40.0, 0.1), Likelihood(0.0)), x, x, num_draws=3000)
    evidence = Independent(Normal(torch.zeros(2), math.sqrt(1 + NOISE**2)), 1).log_prob(x)
    assert_mean_zero(found.log_partition - evidence)


@pytest.mark.parametrize(
    "prior",
    [
        BoxUniform(-torch.ones(2), torch.ones(2)),
        Independent(Uniform(-torch.ones(2), torch.ones(2)), 1),  # validates its arguments
    ],
    ids=["sbi", "torch"],
)
def test_a_leaking_flow_gives_finite_numbers(prior):
    theta = prior.sample((ROWS,))
    found = diagnose_proxy(make(Gaussian(1.0, 1.0), Flat(), prior), theta, theta, num_draws=2000)
    for values in found:
        assert values.isfinite().all()
    # The proxy is the prior, with Z = 1; what leaks has no weight.
    assert_mean_zero(found.log_partition)
    assert (found.reverse_kl > 0).all()
    assert (found.effective_sample_size < 0.7).all()


def test_draws_inside_of_the_support_count_for_what_they_are():
    """KL(N(x, 1) || N(0, 0.003² I) truncated) is of tens of thousands of nats: none is cut off."""
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    x = torch.zeros(4, 2)
    found = diagnose_proxy(make(Gaussian(0.0, 1.0), Narrow(), prior), x, x, num_draws=4000)
    # The proxy is N(theta; 0, 1 / (1 + 1 / 0.003²)) under this prior, but for log Z, estimated.
    precision = 1 + 1 / 0.003**2
    expected = kl_divergence(prior, MultivariateNormal(torch.zeros(2), torch.eye(2) / precision))
    # 4,000 draws know the mean of a chi-square with two degrees of freedom to a sixtieth.
    assert (found.reverse_kl / expected - 1).abs().max() < 0.1


def test_draws_of_the_flow_belong_to_their_x():
    """Posteriors 100 apart: one mixed-up sample would show."""
    x = torch.tensor([[-50.0, 50.0], [50.0, -50.0], [0.0, 0.0]])
    wide = MultivariateNormal(torch.zeros(2), 1e4 * torch.eye(2))
    flow = Gaussian(1.0, NOISE)
    found = diagnose_proxy(make(flow, Likelihood(0.0), wide), x, x, num_draws=500)
    # Over a prior this wide the flow is the posterior, up to NOISE² / 1e4 and the curvature.
    assert (found.reverse_kl.abs() < 0.02).all()
    assert (found.effective_sample_size > 0.98).all()


def test_memory_does_not_grow_with_rows_and_draws():
    estimator = make(Gaussian(0.8, 0.6), Likelihood(0.3))
    theta, x = torch.randn(50, 2), torch.randn(50, 2)
    sizes = []
    hook = lambda module, given: sizes.append(given[0][..., 0].numel())  # noqa: E731
    handle = estimator.proxy.network.register_forward_pre_hook(hook)
    found = diagnose_proxy(estimator, theta, x, num_draws=500)
    handle.remove()
    assert max(sizes) <= 2**12
    assert [len(each) for each in found] == [50] * 4
    # Each row is its own: 1,000 draws know log Z to 0.03 or so.
    alone = torch.cat(
        [diagnose_proxy(estimator, theta[i : i + 1], x[i : i + 1], num_draws=500).log_partition
         for i in range(50)]
    )  # fmt: skip
    torch.testing.assert_close(found.log_partition, alone, rtol=0.0, atol=0.3)


def test_bad_input():
    theta = PRIOR.sample((10,))
    estimator = make(Gaussian(1.0, 1.0), Likelihood(0.0), PRIOR)
    expected = diagnose_proxy(estimator, theta, theta, num_draws=4)
    assert expected.nll.shape == (10,)
    assert diagnose_proxy(estimator, theta.double().numpy(), theta.double()).nll.shape == (10,)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 1, got 0"):
        diagnose_proxy(estimator, theta, theta, num_draws=0)
    with pytest.raises(ValueError, match=r"one x for each theta, got \(10, 2\) and \(9, 2\)"):
        diagnose_proxy(estimator, theta, theta[1:])
    with pytest.raises(ValueError, match=r"one x for each theta, got \(\) and \(10, 2\)"):
        diagnose_proxy(estimator, torch.tensor(1.0), theta)
    with pytest.raises(TypeError, match=r"what JeffreysNPE\.train"):
        diagnose_proxy(estimator.flow, theta, theta)


def test_no_rows():
    none = torch.zeros(0, 2)
    with pytest.raises(ValueError, match="have no rows"):
        diagnose_proxy(make(Gaussian(1.0, 1.0), Likelihood(0.0), PRIOR), none, none)


def test_without_a_proxy():
    theta = PRIOR.sample((10,))
    estimator = JeffreysEstimator(Gaussian(1.0, 1.0), theta, theta)
    with pytest.raises(ValueError, match="no proxy"):
        diagnose_proxy(estimator, theta, theta)
