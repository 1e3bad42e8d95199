"""Which parameters flow and proxy see as logarithms, and where these start."""

import math

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    ExpTransform,
    Independent,
    LogNormal,
    TransformedDistribution,
    Uniform,
)

from sbi_jeffreys.features.linear_posterior import over_decades, to_standard_space
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn

ZERO, ONE = torch.zeros(1), torch.ones(1)
POSITIVE = Independent(LogNormal(torch.zeros(2), 0.5), 1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_positive_parameters_over_decades_start_at_the_posterior_of_their_logarithms(unit):
    prior = Independent(LogNormal(math.log(unit) + torch.zeros(2), torch.tensor([2.0, 0.1])), 1)
    theta = prior.sample((2000,))
    x = theta.log() + torch.tensor([0.5, 0.05]) * torch.randn(2000, 2)
    # Normal prior and noise of the logarithms: a normal posterior.
    prior_precision = torch.tensor([1 / 2.0**2, 1 / 0.1**2])
    precision = prior_precision + 1 / torch.tensor([0.5, 0.05]) ** 2
    mean = (prior_precision * math.log(unit) + x / torch.tensor([0.5, 0.05]) ** 2) / precision
    exact = -LogNormal(mean, precision.rsqrt()).log_prob(theta).sum(dim=1).mean()
    flow = flow_nn(prior)(theta, x)
    # 2,000 rows determine the regression to about a hundredth of a nat; the walls bend the rest.
    assert flow.loss(theta, x).mean().item() == pytest.approx(exact.item(), abs=0.05)
    linear = flow_nn(None)(theta, x).loss(theta, x).mean()
    assert linear > exact + 1.0
    proxy = proxy_nn("likelihood")(theta, flow.embedding_net(x))
    assert proxy.standard_theta.bent.tolist() == [True, True]


def test_parameters_with_an_upper_bound_are_no_logarithms_to_the_flow():
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    theta = prior.sample((1000,)).clamp_min(0.05)
    context = theta.log() + 0.01 * torch.randn(1000, 2)
    # Logarithms would say more, and to the proxy they do; but the upper wall must stay.
    assert over_decades(theta, context).all()
    walls, _ = to_standard_space(theta, context, 2, prior)
    torch.testing.assert_close(walls().thickness, 0.2 * theta.std(dim=0))
    assert proxy_nn("likelihood")(theta, context).standard_theta.bent.all()
    # Nor does such a column speak for another one.
    both = MultipleIndependent([BoxUniform(torch.zeros(1), torch.ones(1)), LogNormal(ZERO, ONE)])
    theta = both.sample((1000,)).clamp_min(0.05)
    context = torch.cat((theta[:, :1].log(), theta[:, 1:]), dim=1) + 0.01 * torch.randn(1000, 2)
    assert over_decades(theta, context).all()
    walls, _ = to_standard_space(theta, context, 2, both)
    torch.testing.assert_close(walls().thickness, 0.2 * theta.std(dim=0))


@pytest.mark.parametrize(("decades", "bent"), [(3, False), (6, True)])
def test_a_log_uniform_prior_over_many_decades_is_seen_in_logarithms(decades, bent):
    low = -0.5 * decades * math.log(10) * torch.ones(2)
    logarithmic = TransformedDistribution(Uniform(low, -low), ExpTransform())
    theta = logarithmic.sample((1000,))
    context = theta.log() / low + 0.05 * torch.randn(1000, 2)
    assert over_decades(theta, context).all()
    walls, _ = to_standard_space(theta, context, 2, Independent(logarithmic, 1))
    thick = walls().thickness > theta.amax(dim=0)
    assert thick.tolist() == [bent, bent]


def test_parameters_of_both_signs_are_no_logarithms():
    theta = torch.randn(1000, 2)
    network = proxy_nn("likelihood")(theta, theta.abs().log())
    assert not network.standard_theta.bent.any()
    assert torch.equal(network.standard_theta(theta), (theta - theta.mean(0)) / theta.std(0))


def test_simulations_below_the_bound_are_no_logarithms():
    theta = POSITIVE.sample((500,))
    context = theta.log() + 0.01 * torch.randn(500, 2)
    thickness = to_standard_space(theta, context, 2, POSITIVE)[0]().thickness
    assert (thickness > theta.amax(dim=0)).all()
    theta[0, 1] = -0.1
    thickness = to_standard_space(theta, context, 2, POSITIVE)[0]().thickness
    assert thickness[1] < theta[:, 1].std()


def test_parameters_are_logarithms_all_together_if_that_is_worth_a_nat():
    theta = POSITIVE.sample((1000,))
    noise = 0.05 * torch.randn(1000, 2)
    # Log-normal of scale a half is nearer to a Gaussian as a logarithm, but by less than that.
    assert over_decades(theta, noise).tolist() == [False, False]
    assert over_decades(theta, theta + noise).tolist() == [False, False]
    product_and_ratio = torch.stack((theta.prod(dim=1), theta[:, 0] / theta[:, 1]), dim=1).log()
    assert over_decades(theta, product_and_ratio + noise).tolist() == [True, True]
    # One that is not positive has no logarithm; without data, or with too many, none is taken.
    signed = torch.cat((theta, torch.randn(1000, 1)), dim=1)
    assert over_decades(signed, product_and_ratio + noise).tolist() == [True, True, False]
    assert not over_decades(theta, None).any()
    assert not over_decades(theta, product_and_ratio.repeat(1, 300)).any()
