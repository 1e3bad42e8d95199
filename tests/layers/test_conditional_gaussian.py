"""The Gaussian given x as a layer: against autograd, broadcasting, and a posterior that is one."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from sbi_jeffreys.features.regression import LinearRegression
from sbi_jeffreys.features.scales import column_scales
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.layers.conditional_gaussian import ConditionalGaussian, _bounded


def layer(features, context=3, scale=1.0, factor=3.0):
    """A layer whose matrix is far from the identity, in float64."""
    gaussian = ConditionalGaussian(
        features, torch.zeros(context), torch.full((context,), scale), [16]
    )
    with torch.no_grad():
        for parameter in gaussian.parameters():
            parameter.mul_(factor)
    return gaussian.double()


@pytest.mark.parametrize("features", [1, 2, 5, 20, 21])
def test_inverse_and_determinant_against_autograd(features):
    # In many dimensions moderate entries are far enough.
    gaussian = layer(features, factor=3.0 if features < 10 else 1.0)
    transform = gaussian(torch.randn(3, dtype=torch.float64))
    theta = torch.randn(features, dtype=torch.float64)
    y, log_det = transform.call_and_ladj(theta)
    jacobian = torch.autograd.functional.jacobian(transform, theta)
    torch.testing.assert_close(log_det, jacobian.slogdet().logabsdet)
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.diagonal() > 0).all()
    torch.testing.assert_close(transform.inv(y), theta)


@pytest.mark.parametrize("shape", [(), (4,), (7, 4)])
def test_samples_share_the_matrix_of_their_x(shape):
    gaussian = layer(3)
    c = torch.randn(4, 3, dtype=torch.float64)
    theta = torch.randn(*shape, 3, dtype=torch.float64)
    transform = gaussian(c)
    y, log_det = transform.call_and_ladj(theta)
    one_by_one = [gaussian(ci).call_and_ladj(theta.expand(7, 4, 3)[:, i]) for i, ci in enumerate(c)]
    expected = torch.stack([pair[0] for pair in one_by_one], dim=1)
    torch.testing.assert_close(y.expand(7, 4, 3), expected)
    torch.testing.assert_close(
        log_det.expand(7, 4), torch.stack([pair[1] for pair in one_by_one], dim=1)
    )
    torch.testing.assert_close(transform.inv(y).expand(7, 4, 3), theta.expand(7, 4, 3))


def test_far_x_are_cut_off_and_scales_are_bounded():
    gaussian = layer(2, scale=10.0)
    theta = torch.randn(5, 2, dtype=torch.float64)
    # Four standard deviations of ten.
    at_cut, beyond = torch.full((3,), 40.0), torch.full((3,), 1e6)
    assert torch.equal(gaussian(at_cut.double())(theta), gaussian(beyond.double())(theta))
    assert not torch.allclose(
        gaussian(at_cut.double() / 2)(theta), gaussian(beyond.double())(theta)
    )


def test_samples_stay_within_bounds_whatever_the_network_says():
    gaussian = layer(4)
    for value in (1e6, -1e6):
        with torch.no_grad():
            gaussian.hyper[-1].bias.fill_(value)
        transform = gaussian(torch.zeros(3, dtype=torch.float64))
        assert ((transform.log_scale > -3) & (transform.log_scale < 7)).all()
        theta = transform.inv(torch.ones(4, dtype=torch.float64))
        # Shifts of ten and a scale of e^3, times a slope of ten from each parameter to the next.
        assert theta.abs().max() < (10 + 3**3) * 11**3


def kinds(flow):
    return [type(module) for module in flow.net.transform.transforms]


def test_the_default_flow_has_it_between_the_linear_part_and_the_splines():
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    flow = flow_nn()(theta, x)
    assert kinds(flow)[:2] == [LinearRegression, ConditionalGaussian]
    assert ConditionalGaussian not in kinds(flow)[2:]
    # It starts near to the identity, which is worth keeping.
    found = flow.net.transform.transforms[1](flow.embedding_net(x))
    torch.testing.assert_close(found(theta), theta, rtol=0, atol=0.1)
    assert not torch.equal(found(theta), theta)


def test_it_standardizes_what_nobody_has():
    center, scale = column_scales(100 * torch.randn(2000, 3) + 300, 3, torch.zeros(1))
    gaussian = ConditionalGaussian(2, center, scale, [8])
    torch.testing.assert_close(gaussian.center, torch.full((3,), 300.0), rtol=0.05, atol=0)
    torch.testing.assert_close(gaussian.scale, torch.full((3,), 100.0), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("x", "embedding"),
    [
        pytest.param(torch.zeros(50, 0), None, id="empty condition"),
        pytest.param(torch.zeros(50, 3), nn.Linear(3, 4), id="embedding to be learnt"),
    ],
)
def test_there_is_none_without_data_of_a_known_scale(x, embedding):
    flow = flow_nn(embedding_net=embedding)(torch.randn(50, 2), x)
    assert ConditionalGaussian not in kinds(flow)


@pytest.mark.parametrize("features", [10, 20, 40])
def test_samples_have_the_density_they_were_drawn_from(features):
    gaussian = layer(features, factor=2.0 if features <= 10 else 1.0).float()
    transform = gaussian(torch.randn(8, 3))
    y = torch.randn(100, 8, features)
    found, log_det = transform.call_and_ladj(transform.inv(y))
    # Float32: what the inverse loses, the density of a sample must not show.
    error = 0.5 * (found.square() - y.square()).sum(dim=-1)
    assert error.abs().max() < 1e-2
    assert log_det.isfinite().all()


def test_learns_a_posterior_whose_scales_and_correlations_depend_on_x():
    x = torch.rand(1000, 1) * 2 - 1
    lower = torch.zeros(len(x), 2, 2)
    lower[:, 0, 0], lower[:, 1, 1] = (1.5 * x[:, 0]).exp(), 0.3
    lower[:, 1, 0] = x[:, 0]
    mean = torch.cat((x.square(), (3 * x).sin()), dim=1)
    truth = MultivariateNormal(mean, scale_tril=lower)
    theta = truth.sample()
    gaussian = ConditionalGaussian(2, torch.zeros(1), torch.ones(1), [64, 64])
    optimizer = torch.optim.Adam(gaussian.parameters(), lr=4e-3)
    for _ in range(400):
        y, log_det = gaussian(x).call_and_ladj(theta)
        log_prob = -0.5 * y.square().sum(-1) - torch.tensor(2 * torch.pi).log() + log_det
        optimizer.zero_grad()
        (-log_prob.mean()).backward()
        optimizer.step()
    # Per row of training: -0.008, a little overfitted; one Gaussian for all x is 1.75 nats behind.
    assert abs((truth.log_prob(theta) - log_prob).mean().item()) < 0.05


def test_the_network_says_products_with_the_scale():
    gaussian = ConditionalGaussian(2, torch.zeros(1), torch.ones(1), [4])
    last = gaussian.hyper[-1]
    with torch.no_grad():
        last.weight.zero_()
        # s m, log s and s L.
        last.bias.copy_(torch.tensor([0.1, 0.1, 1.0, -1.0, 0.2]))
    transform = gaussian(torch.zeros(1))
    zero = torch.zeros(2)
    # Bounds are ten, and cost a few percent here.
    torch.testing.assert_close(transform(zero), torch.full((2,), 0.1), rtol=0.05, atol=0)
    slope = (transform(torch.tensor([1.0, 0.0])) - transform(zero))[1].item()
    assert slope == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize(("features", "outputs"), [(20, 40 + 190), (21, 42)])
def test_more_than_twenty_parameters_have_no_correlations(features, outputs):
    gaussian = ConditionalGaussian(features, torch.zeros(1), torch.ones(1), [4])
    assert gaussian.hyper[-1].out_features == outputs


def test_both_derivatives_of_what_is_bounded():
    value = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    for bound in (2.0, torch.where(value > 0, 7.0, 3.0).detach()):
        found = _bounded(value, bound)
        assert torch.equal(found, value / (1 + value.abs() / bound))
        assert torch.autograd.gradcheck(lambda v, b=bound: _bounded(v, b), value)
        assert torch.autograd.gradgradcheck(lambda v, b=bound: _bounded(v, b), value)
