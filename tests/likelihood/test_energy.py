import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.likelihood.start import steps_of
from sbi_jeffreys.proxy import PairMLP, proxy_nn


def linear_gaussian(n, d=2, c=3):
    """Simulations of x = theta A + noise under a standard normal prior, of unit-ish scale."""
    theta = torch.randn(n, d)
    A = torch.linspace(-1, 1, d * c).reshape(d, c)
    return theta, theta @ A + 0.3 * torch.randn(n, c), A


def shaken(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("common", [0, 1, 2, 3])
@pytest.mark.parametrize("c", [1, 3, 25])
def test_shared_parameters_give_what_pairs_give(c, common):
    # 25 features: the form with a diagonal factor. float64: the diagonal form cancels.
    theta, context = torch.randn(200, 2).double(), torch.randn(200, c).double()
    network = shaken(LikelihoodEnergy(theta, context, common=common).double())
    few, data = torch.randn(7, 1, 2).double(), torch.randn(5, c).double()
    shared = network(few, data)
    assert shared.shape == (7, 5)
    assert torch.allclose(shared, network(few.expand(7, 5, 2), data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", [1, 3, 25])
def test_pairs_and_shared_parameters_together_give_what_they_give_alone(c):
    theta, context = torch.randn(200, 2).double(), torch.randn(200, c).double()
    network = shaken(LikelihoodEnergy(theta, context).double())
    points, few, data = torch.randn(9, 2).double(), torch.randn(4, 2).double(), context[:5]
    which = torch.tensor([0, 1, 2, 3, 4, 2, 2, 0, 4])
    at_pairs, at_all, shift = network.at_pairs_and_all(points, few, data, which, 3)
    alone = network(points[None], data[which])[0]
    assert torch.allclose(at_pairs + shift[which], alone, rtol=1e-9, atol=1e-9)
    at_all = at_all + shift[:3]
    assert torch.allclose(at_all, network(few[:, None], data[:3]), rtol=1e-9, atol=1e-9)
    assert torch.allclose(at_pairs, network.log_likelihood(points, data[which]), atol=1e-9)


@pytest.mark.parametrize(("c", "num"), [(1, 8), (4, 8), (5, 6), (6, 4), (7, 3), (30, 3)])
def test_few_columns_have_more_gaussians(c, num):
    theta, context = torch.randn(50, 2), torch.randn(50, c)
    network = LikelihoodEnergy(theta, context)
    assert network.num_components == len(network.offsets) == num
    assert LikelihoodEnergy(theta, context, num_components=2).num_components == 2


def test_starts_at_the_likelihood_ratio_of_a_linear_gaussian_model():
    theta, x, A = linear_gaussian(20_000)
    network = LikelihoodEnergy(theta, x)
    points, data = theta[:50], x[:40]
    found = network(points.unsqueeze(1), data)
    noise = 0.09 * torch.eye(3)
    likelihood = MultivariateNormal(points.unsqueeze(1) @ A, noise).log_prob(data)
    marginal = MultivariateNormal(torch.zeros(3), A.T @ A + noise).log_prob(data)
    # Quadratic forms over tens of nats, whose covariance 20,000 rows determine to about 1 %.
    exact = likelihood - marginal
    error = (found - exact).abs() / (1 + exact.abs())
    assert error.median() < 0.02
    assert error.quantile(0.9) < 0.05


def test_is_normalised_at_the_start():
    theta, x, _ = linear_gaussian(5000)
    log_ratio = LikelihoodEnergy(theta, x)(torch.randn(20_000, 1, 2), x[:30])
    log_z = log_ratio.logsumexp(dim=0) - math.log(20_000)
    # Z is a mean of weights of which some hundred count (few for the x in the tails): 0.05 each.
    assert log_z.abs().median() < 0.05
    assert log_z.abs().quantile(0.9) < 0.2


@pytest.mark.parametrize("common", [1, 2, 3])
def test_what_moves_as_one_and_what_does_not_move(common):
    theta, x, _ = linear_gaussian(200)
    network = shaken(LikelihoodEnergy(theta, x, common=common))
    *found, log_weight = network._components(theta)
    # Beyond tanh, which bounds scales, numbers add up.
    found[1] = 6 * torch.atanh(found[1] / 6)
    for k, each in enumerate(found):
        relative = each - each[:, :1]
        assert torch.allclose(relative, relative[:1].expand_as(relative), atol=1e-4)
        moves = not torch.allclose(each, each[:1].expand_as(each), atol=1e-4)
        assert moves == (k < common)
    assert not torch.allclose(log_weight, log_weight[:1].expand_as(log_weight), atol=1e-3)


@pytest.mark.parametrize("common", [0, 1, 2, 3])
def test_every_form_starts_at_the_linear_likelihood(common):
    theta, x, _ = linear_gaussian(300)
    torch.manual_seed(1)
    first = LikelihoodEnergy(theta, x)
    torch.manual_seed(1)
    network = LikelihoodEnergy(theta, x, common=common)
    assert torch.equal(network(theta[:9, None], x[:7]), first(theta[:9, None], x[:7]))


@pytest.mark.parametrize("common", [-1, 4, 1.0, "1"])
def test_refuses_a_form_that_there_is_not(common):
    with pytest.raises(ValueError, match=f"common={common!r} must be 0, 1, 2 or 3"):
        LikelihoodEnergy(torch.randn(10, 2), torch.randn(10, 3), common=common)


def test_outliers_do_not_explode():
    theta, x, _ = linear_gaussian(500)
    network = LikelihoodEnergy(theta, x)
    far = torch.full((1, 3), 1e6)
    assert torch.equal(network(theta[:5].unsqueeze(1), far)[:, 0].isfinite(), torch.ones(5) > 0)


def test_nan_rows_are_left_out_of_the_start():
    theta, x, _ = linear_gaussian(500)
    x[::7, 1] = math.nan
    assert all(bool(t.isfinite().all()) for t in LikelihoodEnergy(theta, x).state_dict().values())


def test_constant_columns_are_no_trouble():
    theta, x, _ = linear_gaussian(100)
    theta[:, 1], x[:, 0] = 2.0, 0.0
    assert LikelihoodEnergy(theta, x)(theta[:5].unsqueeze(1), x[:4]).isfinite().all()


def test_positive_parameters_over_forty_decades():
    theta = torch.linspace(-37.0, 3.0, 200).view(-1, 1) * math.log(10)
    x = theta + torch.randn_like(theta)
    network = LikelihoodEnergy(theta.exp(), x)
    assert network.standard_theta.bent.all()
    assert network(theta.exp()[:, None], x).isfinite().all()


def test_refuses_an_empty_condition():
    with pytest.raises(ValueError, match="proxy='mlp'"):
        LikelihoodEnergy(torch.randn(10, 2), torch.randn(10, 0))


@pytest.mark.parametrize(("c", "kind"), [(0, PairMLP), (3, LikelihoodEnergy), (501, PairMLP)])
def test_the_default_proxy_takes_the_network_that_fits(c, kind):
    assert isinstance(proxy_nn()(torch.randn(30, 2), torch.randn(30, c)), kind)


def test_forgets_its_start_where_the_embedding_is_learnt():
    theta, x, _ = linear_gaussian(300)
    flow = flow_nn(embedding_net=torch.nn.Linear(3, 4))(theta, x)
    estimator = JeffreysEstimator(
        flow, theta, x, base=Base(None, theta), build_proxy=proxy_nn("likelihood")
    )
    network = estimator.proxy.network
    assert isinstance(network, LikelihoodEnergy)
    assert torch.equal(network.whitening, torch.eye(4))
    ratio = estimator.proxy.log_ratio(theta[:6].unsqueeze(1), x[:5])
    # No start, no dependence on theta until training begins.
    assert torch.allclose(ratio, ratio[:1].expand(6, 5), atol=1e-5)


@pytest.mark.parametrize("c", [2, 25])
def test_simulates_the_density_that_it_evaluates(c):
    """log_likelihood is torch's density of the mixture, and draws have its mean and covariance."""
    theta, x, _ = linear_gaussian(500, c=c)
    network = shaken(LikelihoodEnergy(theta, x))
    with torch.no_grad():
        network.of_theta[-1].bias.view(network.num_components, -1)[:, -1] += (
            4.0  # let all components count
        )
    where = theta[:1].expand(20_000, -1)
    with torch.no_grad():
        # No outliers, which evaluation cuts off.
        own = network.simulate(where)
        inside = (own.abs() < 4).all(dim=1)
        log_q = network.log_likelihood(where[inside], own[inside])
        m, log_scale, lower, log_weight = network._components(theta[:1])
    components = []
    W = network.whitening
    for k in range(network.num_components):
        A = torch.diag(log_scale[0, k].exp())
        if lower.shape[-1]:
            A[network.lower[0], network.lower[1]] = lower[0, k]
        AW = A @ W
        precision = AW.T @ AW
        mean = torch.linalg.solve(W, m[0, k])
        normal = MultivariateNormal(mean, precision_matrix=precision)
        components.append(log_weight[0, k] + normal.log_prob(own[inside]))
    exact = torch.stack(components).logsumexp(dim=0)
    constant = 0.5 * c * math.log(2 * math.pi) - W.logdet()
    # float32, quadratic forms of tens of nats.
    torch.testing.assert_close(log_q, exact + constant, rtol=1e-3, atol=2e-3)
    # Draws follow the density: mean and covariance of all draws.
    weights = log_weight[0].exp()
    means = torch.linalg.solve(W, m[0].T).T
    mean = weights @ means
    error = (own.mean(dim=0) - mean).abs() / (own.std(dim=0) / math.sqrt(len(own)))
    # Five standard errors of 20,000 draws.
    assert error.max() < 5
    covariance = torch.zeros(c, c)
    for k in range(network.num_components):
        A = torch.diag(log_scale[0, k].exp())
        if lower.shape[-1]:
            A[network.lower[0], network.lower[1]] = lower[0, k]
        within = torch.linalg.inv((A @ W).T @ (A @ W))
        covariance += weights[k] * (within + torch.outer(means[k] - mean, means[k] - mean))
    size = covariance.diagonal().sqrt()
    # Entries of a sample correlation have standard errors of at most sqrt(2 / 20,000) = 0.01.
    assert ((own.T.cov() - covariance) / torch.outer(size, size)).abs().max() < 0.05


def test_data_in_steps_are_spread_over_their_steps():
    theta = torch.randn(400, 2)
    counts = torch.stack(((theta[:, 0] > 0).float(), theta[:, 1] + 0.1 * torch.randn(400)), dim=1)
    network = LikelihoodEnergy(theta, counts)
    assert network.gaps.tolist() == [1.0, 0.0]
    first, second = (network.dequantize(counts) - counts for _ in range(2))
    assert (first[:, 0] != second[:, 0]).any()
    assert first[:, 0].abs().max() <= 0.5
    # Uniform over the step: a variance of 1/12, to five standard errors of 400 draws.
    assert abs(first[:, 0].var().item() - 1 / 12) < 5 * (1 / 180 / 400) ** 0.5
    assert (first[:, 1] == 0).all()


def test_censored_data_are_not_taken_for_steps():
    theta, x, _ = linear_gaussian(400)
    assert LikelihoodEnergy(theta, x.clamp_min(0.3)).gaps.abs().sum() == 0


def test_scale_of_an_embedding_that_nobody_standardised_does_not_matter():
    theta, x, _ = linear_gaussian(2000)
    own, raw = LikelihoodEnergy(theta, x), LikelihoodEnergy(theta, 100 + 30 * x)
    assert own.center.abs().max() == 0
    assert (own.scale == 1).all()
    points, data = theta[:20].unsqueeze(1), x[:30]
    # Offsets of the other components are drawn anew; they have little weight.
    difference = own(points, data) - raw(points, 100 + 30 * data)
    assert difference.abs().median() < 0.1
    simulated = raw.simulate(theta)
    assert ((simulated.mean(dim=0) - 100) / 30 - x.mean(dim=0)).abs().max() < 0.2
    assert (simulated.std(dim=0) / 30 / x.std(dim=0) - 1).abs().max() < 0.1


def test_continuous_data_are_not_disturbed():
    theta, x, _ = linear_gaussian(300)
    network = shaken(LikelihoodEnergy(theta, x))
    assert network.gaps.abs().sum() == 0
    first, second = (network.log_likelihood(theta[:9], x[:9]) for _ in range(2))
    assert torch.equal(first, second)
    # Up to what depends on the data alone it is the energy.
    shift = network(theta[:9].unsqueeze(1), x[:9]).diagonal() - first
    other = network(theta[5:6].unsqueeze(1), x[:9])[0] - network.log_likelihood(
        theta[5:6].expand(9, -1), x[:9]
    )
    torch.testing.assert_close(shift, other, rtol=1e-3, atol=1e-3)


def test_a_step_is_the_usual_distance_of_neighbours():
    values = torch.tensor([0.0, 0.5, 1.5, 2.5]).repeat(3)
    assert steps_of(values.unsqueeze(1)).tolist() == [1.0]


def test_what_is_simulated_is_cut_off_as_data_are():
    theta, x, _ = linear_gaussian(500)
    network = LikelihoodEnergy(theta, x)
    own = network.simulate(100 * theta)
    assert ((own - network.center).abs() <= 4 * network.scale).all()


def test_is_normalised_at_the_start_where_parameters_are_correlated():
    mix = torch.tensor([[1.0, 0.95], [0.0, 0.31]])
    theta = torch.randn(5000, 2) @ mix
    x = theta @ torch.tensor([[1.0, 0.0], [-1.0, 1.0]]) + 0.5 * torch.randn(5000, 2)
    draws = torch.randn(20_000, 2) @ mix
    log_ratio = LikelihoodEnergy(theta, x)(draws.unsqueeze(1), x[:30])
    log_z = log_ratio.logsumexp(dim=0) - math.log(20_000)
    assert log_z.abs().median() < 0.05


def test_nothing_of_the_start_is_left_where_the_embedding_is_learnt():
    theta = torch.randn(300, 2)
    counts = 30.0 * torch.stack(((theta[:, 0] > 0).float(), torch.randint(0, 4, (300,))), dim=1)
    network = LikelihoodEnergy(theta, counts)
    left = {
        "scale": 1.0,
        "center": 0.0,
        "slope": 0.0,
        "intercept": 0.0,
        "log_ratio": 0.0,
        "gaps": 0.0,
        "marginal_intercept": 0.0,
    }
    assert all((getattr(network, name) != value).any() for name, value in left.items())
    network.forget_start(theta)
    assert all((getattr(network, name) == value).all() for name, value in left.items())
    assert torch.equal(network.marginal_whitening, torch.eye(2))


def test_components_are_simulated_as_often_as_they_weigh(monkeypatch):
    network = LikelihoodEnergy(torch.randn(100, 1), torch.randn(100, 1))
    for name, value in (("whitening", 1.0), ("center", 0.0), ("scale", 1.0)):
        getattr(network, name).fill_(value)
    weights, num = torch.tensor([0.7, 0.2, 0.1]), 20_000
    means = torch.tensor([[-3.0], [0.0], [3.0]]).expand(num, 3, 1)
    said = means, torch.full_like(means, 3.0), torch.zeros(num, 3, 0), weights.log().expand(num, 3)
    monkeypatch.setattr(network, "_components", lambda theta: said)
    own = network.simulate(torch.zeros(num, 1)).squeeze(1)
    found = torch.stack([((own - mean).abs() < 1).float().mean() for mean in (-3.0, 0.0, 3.0)])
    # Five standard errors of a share.
    torch.testing.assert_close(found, weights, rtol=0, atol=5 * 0.5 / num**0.5)
