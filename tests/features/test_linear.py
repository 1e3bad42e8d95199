"""The linear part of a posterior: against least squares, autograd and quadrature."""

import copy
import math

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import (
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
)

from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.features.linear_posterior import LinearPosterior, to_standard_space
from sbi_jeffreys.features.regression import LinearRegression
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import FromLinear, PairMLP, proxy_nn

BOX = BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0]))
POSITIVE = Independent(LogNormal(torch.zeros(2), 0.5), 1)


def linear_gaussian(num, dtype=torch.float64):
    """theta = A c + b + L z, with c standard normal."""
    a = torch.tensor([[1.0, -2.0, 0.5], [0.0, 30.0, 10.0]], dtype=dtype)
    b = torch.tensor([3.0, -100.0], dtype=dtype)
    lower = torch.tensor([[0.3, 0.0], [4.0, 2.0]], dtype=dtype)
    context = torch.randn(num, 3, dtype=dtype)
    theta = context @ a.T + b + torch.randn(num, 2, dtype=dtype) @ lower.T
    return theta, context, a, b, lower @ lower.T


def box_data(num=400, noise=0.3):
    theta = BOX.sample((num,))
    context = torch.cat((theta / theta.std(dim=0), torch.randn(num, 1)), dim=1)
    return theta, context + noise * torch.randn(num, 3)


def negative_log_normal(y, log_det):
    return 0.5 * (y.square().sum(dim=-1) + y.shape[-1] * math.log(2 * math.pi)) - log_det


def test_recovers_a_linear_gaussian_model():
    theta, context, a, b, covariance = linear_gaussian(20_000)
    # A context beyond the cut is another regressor: leave it out here.
    keep = (context.abs() < 4).all(dim=1)
    theta, context = theta[keep], context[keep]
    found = LinearRegression(theta, context, 3)
    design = np.column_stack((context.numpy(), np.ones(len(context))))
    solution = np.linalg.lstsq(design, theta.numpy(), rcond=None)[0].T
    scale = covariance.diagonal().sqrt()[:, None]
    # A ridge chosen among penalties of up to 1e4 by leave-one-out: next to none on these data.
    expected = torch.as_tensor(solution)
    assert ((found.coefficients - expected[:, :3]).abs() < 1e-2 * scale).all()
    assert ((found.intercept - expected[:, 3]).abs() < 1e-2 * scale[:, 0]).all()
    # And the truth: five standard errors of 1 / sqrt(20 000).
    assert ((found.coefficients - a).abs() < 5 * scale / 141).all()
    assert ((found.intercept - b).abs() < 5 * scale[:, 0] / 141).all()
    assert ((found.lower @ found.lower.T - covariance).abs() < 0.05 * scale * scale.T).all()
    residuals = np.cov((theta.numpy() - design @ solution.T).T)
    ours = (found.lower @ found.lower.T).numpy()
    # Shrinkage and jitter are of the order of 1 / n.
    np.testing.assert_allclose(ours, residuals, rtol=1e-2, atol=1e-2 * 0.3**2)


def test_residuals_are_white():
    theta, context, *_ = linear_gaussian(20_000)
    y = LinearRegression(theta, context, 3)(context)(theta)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(2).double(), rtol=0, atol=1e-2)
    torch.testing.assert_close(y.T.cov(), torch.eye(2).double(), rtol=0, atol=2e-2)
    # Independent of the context as well.
    assert torch.cat((y, context), dim=1).T.corrcoef()[:2, 2:].abs().max() < 1e-2


@pytest.mark.parametrize("conditional", [True, False])
def test_forward_inverse_and_log_det(conditional):
    theta, context, *_ = linear_gaussian(300)
    regression = LinearRegression(theta, context if conditional else None, 3)
    transform = regression(context[:7])
    y, log_det = transform.call_and_ladj(theta[:7])
    torch.testing.assert_close(transform(theta[:7]), y, rtol=0, atol=0)
    torch.testing.assert_close(transform.inv(y), theta[:7], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(transform.log_abs_det_jacobian(theta[:7], y), log_det)
    assert log_det.shape == (7,)
    for row in range(7):
        one = regression(context[row])
        jacobian = torch.autograd.functional.jacobian(one, theta[row])
        torch.testing.assert_close(jacobian.slogdet().logabsdet, log_det[row])
        torch.testing.assert_close(one(theta[row]), y[row])


def test_broadcasts_shared_parameters_over_conditions():
    theta, context, *_ = linear_gaussian(300)
    regression = LinearRegression(theta, context, 3)
    y, log_det = regression(context[:5]).call_and_ladj(theta[:4, None])
    assert y.shape == (4, 5, 2)
    for s in range(4):
        for b in range(5):
            torch.testing.assert_close(y[s, b], regression(context[b])(theta[s]))
    # One number for all rows: broadcasting it is left to the sum.
    assert torch.broadcast_shapes(log_det.shape, (4, 5)) == (4, 5)
    posterior = LinearPosterior(theta, context, 3, None)
    table = posterior.log_prob(theta[:4, None], context[:5])
    assert table.shape == (4, 5)
    full = posterior.log_prob(theta[:4, None].expand(4, 5, 2), context[:5])
    torch.testing.assert_close(table, full)


@pytest.mark.parametrize("prior", [BOX, POSITIVE], ids=["box", "positive"])
def test_posterior_broadcasts_behind_walls(prior):
    theta = prior.sample((100,))
    context = theta + 0.3 * torch.randn(100, 2)
    posterior = LinearPosterior(theta, context, 2, prior)
    table = posterior.log_prob(theta[:4, None], context[:5])
    assert table.shape == (4, 5)
    for s in range(4):
        alone = posterior.log_prob(theta[s].expand(1, 5, 2), context[:5])[0]
        torch.testing.assert_close(table[s], alone)


def test_without_context_it_is_mean_and_covariance():
    theta, context, *_ = linear_gaussian(5000)
    regression = LinearRegression(theta, None, 3)
    assert regression.coefficients.shape == (2, 3)
    assert (regression.coefficients == 0).all()
    torch.testing.assert_close(regression.intercept, theta.mean(dim=0))
    ours = regression.lower @ regression.lower.T
    scale = theta.std(dim=0)
    assert ((ours - theta.T.cov()).abs() < 1e-2 * scale * scale[:, None]).all()
    # Whatever x, and where a flow is given none.
    torch.testing.assert_close(regression(context)(theta), regression(None)(theta))


@pytest.mark.parametrize("conditional", [True, False])
def test_a_parameter_that_never_varies(conditional):
    theta, context, *_ = linear_gaussian(200)
    theta[:, 1] = 7.0
    regression = LinearRegression(theta, context if conditional else None, 3)
    transform = regression(context)
    y, log_det = transform.call_and_ladj(theta)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    # float64, through a Cholesky factor.
    torch.testing.assert_close(y[:, 1], torch.zeros(200).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(transform.inv(y), theta, rtol=1e-10, atol=1e-10)
    # The other parameter is what it is alone.
    assert 0.8 < y[:, 0].std() < 1.2


@pytest.mark.parametrize("num", [20, 50, 60])
@pytest.mark.parametrize("informative", [True, False])
def test_few_simulations_of_many_features(informative, num):
    """Residuals of the rows that were fitted are no measure of those to come."""
    features = 50
    direction = torch.randn(features, 2) / math.sqrt(features)

    def simulate(num):
        context = torch.randn(num, features)
        signal = context @ direction if informative else torch.randn(num, 2)
        return signal + 0.3 * torch.randn(num, 2), context

    theta, context = simulate(num)
    regression = LinearRegression(theta, context, features)
    for value in regression.buffers():
        assert value.isfinite().all()
    held_out, given = simulate(2000)
    loss = negative_log_normal(*regression(given).call_and_ladj(held_out)).mean()
    marginal = MultivariateNormal(theta.mean(dim=0), theta.T.cov())
    # Overfitting by 20 rows costs less than a few tenths of a nat per parameter.
    assert loss < -marginal.log_prob(held_out).mean() + 0.3


@pytest.mark.parametrize("num", [2, 3])
def test_hardly_any_simulations(num):
    theta, context = torch.randn(num, 2), torch.randn(num, 3)
    y, log_det = LinearRegression(theta, context, 3)(context).call_and_ladj(theta)
    assert y.isfinite().all()
    assert log_det.isfinite().all()


def test_outliers_of_x_are_cut():
    theta, context, *_ = linear_gaussian(300)
    far = torch.tensor([[1e6, -50.0, 0.3]], dtype=torch.float64)
    cut = torch.tensor([[4.0, -4.0, 0.3]], dtype=torch.float64)
    regression = LinearRegression(theta, context, 3)
    assert (regression(far)(theta) == regression(cut)(theta)).all()
    inside = cut * 0.999
    assert (regression(inside)(theta) != regression(cut)(theta)).any()
    # Neither do they bend the fit.
    polluted = context.clone()
    polluted[0] = 1e8
    cut_off = polluted.clamp(-4, 4)
    found, expected = (LinearRegression(theta, c, 3) for c in (polluted, cut_off))
    assert (found.coefficients == expected.coefficients).all()


@pytest.mark.parametrize("prior", [None, BOX, POSITIVE], ids=["none", "box", "positive"])
def test_posterior_integrates_to_one(prior):
    theta = prior.sample((400,)) if prior else torch.randn(400, 2) * torch.tensor([1.0, 2.0])
    context = theta / theta.std(dim=0) + 0.5 * torch.randn(400, 2)
    posterior = LinearPosterior(theta, context, 2, prior).double()
    # Midpoints: nothing is looked at on the bounds themselves.
    steps = (torch.arange(1200).double() + 0.5) / 1200
    if prior is POSITIVE:
        # Crowded at zero, where one of these posteriors is.
        axes = [(15 * steps.square(), 30 * steps / 1200)] * 2
    else:
        bounds = ((-1.0, 1.0), (0.0, 5.0)) if prior else ((-8.0, 8.0), (-16.0, 16.0))
        axes = [(low + (high - low) * steps, (high - low) / 1200 + 0 * steps)
                for low, high in bounds]  # fmt: skip
    (a, first), (b, second) = axes
    density = posterior.log_prob(torch.cartesian_prod(a, b)[:, None], context[:3].double()).exp()
    total = torch.cartesian_prod(first, second).prod(dim=1) @ density
    # What the midpoint rule leaves of the thin layer at the walls.
    torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("prior", [BOX, POSITIVE], ids=["box", "positive"])
def test_minus_infinity_outside_of_the_walls(prior):
    theta = prior.sample((200,))
    context = theta + 0.1 * torch.randn(200, 2)
    posterior = LinearPosterior(theta, context, 2, prior)
    outside = torch.tensor([[-2.0, 1.0], [0.5, -1e-3], [-1e6, -1e6]])[:, None]
    assert (posterior.log_prob(outside, context[:4]) == -math.inf).all()
    assert posterior.log_prob(theta[:, None], context[:4]).isfinite().all()


def test_simulations_outside_of_the_prior_have_a_density():
    theta = 1.5 * BOX.sample((200,))
    posterior = LinearPosterior(theta, theta, 2, BOX)
    assert posterior.log_prob(theta[None], theta).isfinite().all()


def test_standard_space_has_walls_only_where_there_are_bounds():
    theta, context, *_ = linear_gaussian(100)
    gaussian = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert len(to_standard_space(theta, context, 3, None)) == 1
    assert len(to_standard_space(theta, context, 3, gaussian)) == 1
    assert len(to_standard_space(*box_data(), 3, BOX)) == 2


def test_nothing_is_trained_and_all_is_saved():
    theta, context = box_data()
    first, other = (
        LinearPosterior(theta, context, 3, BOX),
        LinearPosterior(0.5 * theta, context, 3, BOX),
    )
    assert list(first.parameters()) == []
    points = theta[:20, None]
    before = first.log_prob(points, context[:5])
    assert (other.log_prob(points, context[:5]) != before).any()
    other.load_state_dict(first.state_dict())
    assert (other.log_prob(points, context[:5]) == before).all()
    assert (copy.deepcopy(first).log_prob(points, context[:5]) == before).all()


def test_flow_starts_near_a_linear_posterior():
    theta, context, *_ = linear_gaussian(2000, torch.float32)
    flow = flow_nn(None)(theta, context)
    held_out, x, a, b, covariance = linear_gaussian(2000, torch.float32)
    exact = MultivariateNormal(x @ a.T + b, covariance).log_prob(held_out).mean()
    marginal = MultivariateNormal(theta.mean(dim=0), theta.T.cov()).log_prob(held_out).mean()
    with torch.no_grad():
        found = -flow.loss(held_out, x).mean()
    # The random splines distort the standard normal by some tenths of a nat.
    assert exact - 0.5 < found < exact + 0.05
    assert found > marginal + 1


@pytest.mark.parametrize("prior", [BOX, None], ids=["box", "none"])
def test_the_proxy_starts_as_the_linear_posterior(prior):
    theta, context = box_data()
    base = Base(prior, theta)
    linear = LinearPosterior(theta, context, 3, base.distribution)
    network = FromLinear(PairMLP(theta, context), linear, base)
    points = base.sample(200_000)[:, None]
    log_base = base.log_prob(points)
    ratio = network(points, context[:3])
    assert ratio.shape == (200_000, 3)
    # Z is the mean of the ratio under the base.
    weights = ratio.exp()
    error = weights.std(dim=0) / math.sqrt(len(weights))
    assert (error < 0.02).all()
    # And exp(-10) of what the clamp puts where the linear posterior has nothing.
    assert ((weights.mean(dim=0) - 1).abs() < 5 * error + 1e-4).all()
    assert ratio.std() > 0.5
    exact = linear.log_prob(points, context[:3])
    near = (exact - log_base).abs() < 10
    assert near.any(dim=0).all()
    torch.testing.assert_close((ratio + log_base)[near], exact[near], rtol=1e-4, atol=1e-4)
    assert ratio.abs().max() <= 10


def test_the_network_adds_to_the_linear_part():
    theta, context = box_data()
    base = Base(BOX, theta)
    inner = PairMLP(theta, context)
    network = FromLinear(inner, LinearPosterior(theta, context, 3, BOX), base)
    start = network(theta[:, None], context[:4])
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    torch.testing.assert_close(
        network(theta[:, None], context[:4]), start + inner(theta[:, None], context[:4])
    )
    assert {id(p) for p in network.parameters()} == {id(p) for p in inner.parameters()}
    # Outside of the support: finite.
    assert network(torch.full((1, 1, 2), 50.0), context[:4]).isfinite().all()


@pytest.mark.parametrize("learnt", [True, False])
def test_estimators_proxy_is_normalised_at_the_start(learnt):
    theta, x = box_data()
    embedding = nn.Linear(3, 4) if learnt else None
    flow = flow_nn(BOX, hidden_features=16, num_transforms=2, embedding_net=embedding)(theta, x)
    base = Base(BOX, theta)
    estimator = JeffreysEstimator(flow, theta, x, base=base, build_proxy=proxy_nn("mlp"))
    with torch.no_grad():
        ratio = estimator.proxy.log_ratio(BOX.sample((200_000,))[:, None], x[:3])
    error = ratio.exp().std(dim=0) / math.sqrt(len(ratio))
    assert ((ratio.exp().mean(dim=0) - 1).abs() < 5 * error + 1e-4).all()
    # An embedding that is still to be learnt says nothing of theta yet.
    same = (ratio == ratio[:, :1]).all()
    assert bool(same) == learnt


def test_a_normal_that_is_known():
    """One parameter without data: the density is the Gaussian of mean and standard deviation."""
    theta = 3 + 2 * torch.randn(4000, 1, dtype=torch.float64)
    posterior = LinearPosterior(theta, None, 2, None)
    points = torch.linspace(-5, 11, 50, dtype=torch.float64)[:, None, None]
    expected = Normal(theta.mean(), theta.std(correction=0)).log_prob(points[..., 0])
    found = posterior.log_prob(points, torch.randn(3, 2, dtype=torch.float64))
    # The jitter of 1e-6 on the variance, up to eight squared standard deviations.
    torch.testing.assert_close(found, expected.expand(50, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_a_line_through_few_points_is_not_taken_for_a_law(num):
    theta = torch.randn(num, 2)
    regression = LinearRegression(theta, theta + 0.1 * torch.randn(num, 2), 2)
    # Residuals are no smaller, in any direction, than rows so few can tell: a third of the bound.
    smallest = torch.linalg.svdvals(regression.lower).min()
    assert smallest > theta.std(dim=0, correction=0).min() / num**2.5 / 3
