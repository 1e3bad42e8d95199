"""What held-out data say: of the flow exactly, of the proxy now and then."""

import math
from types import SimpleNamespace

import pytest
import torch
from pools import FLOW, PROXY, Constant, gaussians, simulations
from pools import PRIOR as POOLS_PRIOR
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys.base import Base
from sbi_jeffreys.diagnostics import diagnose_proxy
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.fit import likelihood_losses
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training import held_out
from sbi_jeffreys.training.batches import Data, ones
from sbi_jeffreys.training.held_out import ProxyLooks, best_pooling, center_partition, flow_losses
from sbi_jeffreys.utils.row_losses import bounded

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def make(num=100, proxy="likelihood"):
    theta = PRIOR.sample((num,))
    x = theta + 0.2 * torch.randn(num, 2)
    build = flow_nn(PRIOR, hidden_features=24, num_transforms=2)
    estimator = JeffreysEstimator(
        build(theta, x), theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn(proxy)
    )
    return estimator, Data(theta, x, torch.ones(num, 1), torch.arange(num))


def test_flow_losses_are_weighted_negative_log_densities():
    estimator, data = make(30)
    found, _ = flow_losses(estimator, data, "cpu", kernel=lambda x: x[:, 0].exp())
    expected = -estimator.log_prob(data.theta[None], data.x)[0] * data.x[:, 0].exp()
    assert torch.allclose(found, expected.detach())
    assert not found.requires_grad
    assert not estimator.training


def test_outliers_are_bounded_and_nothing_else():
    losses = torch.linspace(-1.0, 1.0, 101)
    assert torch.equal(bounded(losses), losses)
    far = losses.clone()
    far[[3, 50]] = torch.tensor([1e4, torch.inf])
    found = bounded(far)
    # The median moves by two rows of 0.02, the range between the quartiles, 1, by as many.
    assert found[3] == found[50] == pytest.approx(4.0, abs=0.2)
    others = torch.ones(101, dtype=torch.bool)
    others[[3, 50]] = False
    assert torch.equal(found[others], losses[others])
    # What is better than all others is no outlier, and what is no number is not hidden.
    assert torch.equal(bounded(-(losses.exp() ** 9)), -(losses.exp() ** 9))
    assert bounded(torch.tensor([0.0, 1.0, 2.0, torch.nan])).isnan().any()
    assert torch.equal(bounded(torch.tensor([7.0])), torch.tensor([7.0]))


def test_a_kernel_that_weighs_few_rows_hides_none_of_them():
    estimator, data = make(40)
    inside = (data.x[:, 0] > data.x[:, 0].quantile(0.8)).float()
    chosen = dict(zip(map(tuple, data.x.tolist()), inside, strict=True))

    def kernel(x):
        return torch.stack([chosen[tuple(row)] for row in x.tolist()])

    rows, outliers_bounded = flow_losses(estimator, data, "cpu", kernel)
    assert torch.equal(rows, outliers_bounded)
    assert (outliers_bounded != 0).sum() == inside.sum() == 8


def test_a_row_without_weight_has_no_say_even_if_it_has_no_density():
    estimator, data = make(30)
    data.theta[3] = 5.0
    losses = flow_losses(estimator, data, "cpu", lambda x: (data.theta[:, 0] < 2).float())
    for found in losses:
        assert found.isfinite().all()
        assert found[3] == 0
    assert flow_losses(estimator, data, "cpu", ones)[0][3] == torch.inf


def test_atomic_losses_are_of_batches_of_their_size():
    estimator, data = make(30)
    sizes = []

    def loss(theta, x, masks):
        sizes.append(len(theta))
        return theta[:, 0] + masks[:, 0]

    found, _ = flow_losses(estimator, data, "cpu", ones, (loss, 10))
    assert sizes == [10, 10, 10]
    assert torch.equal(found, data.theta[:, 0] + 1)


@pytest.mark.parametrize(("proxy", "steps"), [("likelihood", 64), ("mlp", 32)])
def test_the_proxy_is_looked_at_now_and_then(proxy, steps):
    estimator, data = make(proxy=proxy)
    looks = ProxyLooks(watch=True)
    looks.look(estimator, data, 0, "cpu")
    first = looks.seen
    assert set(first) >= {"validation_loss_proxy", "log_partition_mean"}
    assert looks.plateau.weights
    for parameter in estimator.proxy.parameters():
        torch.nn.init.normal_(parameter)
    looks.look(estimator, data, steps - 1, "cpu")
    assert looks.seen is first
    looks.look(estimator, data, steps, "cpu")
    assert looks.seen["validation_loss_proxy"] != first["validation_loss_proxy"]
    # The likelihood itself needs no draws, and is looked at more often: at 0, 63 and not again at
    # 64.
    assert looks.plateau.looks == 1


def test_how_far_the_proxy_is_ahead_of_the_flow():
    # Standard deviations of 1 and 0.5 around the right mean: two parameters, log 4 less 3/8 twice.
    estimator, looks = gaussians(0.0, shift=0.0, scale=0.5), ProxyLooks(watch=False)
    looks.look(estimator, simulations(64, 0.5), 0, "cpu")
    expected = math.log(4) - 0.75
    # Of 64 rows, each with a standard deviation of 0.75, and 64 draws for each.
    assert looks.lead == pytest.approx(expected, abs=0.4)
    # Rows as the flow says: it is the proxy that is behind.
    looks = ProxyLooks(watch=False)
    looks.look(estimator, simulations(64, 1.0), 0, "cpu")
    assert looks.lead < -0.3
    # Nobody knows.
    estimator.proxy.network, looks = Constant(float("nan")), ProxyLooks(watch=False)
    looks.look(estimator, simulations(64, 1.0), 0, "cpu")
    assert looks.lead == 0.0


def test_without_a_watch_no_weights_are_kept():
    estimator, data = make()
    looks = ProxyLooks(watch=False)
    looks.look(estimator, data, 0, "cpu")
    assert looks.seen
    assert not looks.plateau.weights


def test_the_mean_of_log_z_is_zero_in_the_end():
    estimator, data = make(200)
    before = diagnose_proxy(estimator, data.theta, data.x, num_draws=64).log_partition.mean()
    estimator.proxy.network.log_ratio += 5.0
    center_partition(estimator, data, data, "cpu")
    after = diagnose_proxy(estimator, data.theta, data.x, num_draws=64).log_partition.mean()
    # The estimate has a standard error of some 0.02 here: 200 x, 2 x 64 draws each.
    assert abs(after) < 0.1
    assert abs(before) < 1.0


@pytest.mark.parametrize(
    ("mean", "std", "moved"),
    # With a standard error of 0.1: of a nat all but a hundredth, of a tenth half, of 0.01 nothing.
    [(1.0, 1.0, 1 / 1.01), (0.1, 1.0, 0.05), (0.01, 1.0, 1e-4), (-1.0, 1.0, -1 / 1.01)],
)
def test_held_out_x_say_how_far_log_z_is_off_as_surely_as_they_can(monkeypatch, mean, std, moved):
    estimator, data = make(100)
    x = torch.linspace(-1, 1, 100)
    looked = [torch.full((100,), 2.0), 2.0 + mean + std * (x - x.mean()) / x.std()]
    monkeypatch.setattr(held_out, "_log_partitions", lambda *args: looked.pop(0))
    before = estimator.proxy.network.log_ratio.clone()
    center_partition(estimator, data, data, "cpu")
    after = estimator.proxy.network.log_ratio
    assert (before - after).item() == pytest.approx(2.0 + moved, abs=1e-5)


@pytest.mark.parametrize(
    "fresh", [torch.tensor([4.0]), torch.tensor([torch.inf, 1.0]), torch.tensor([torch.nan, 1.0])]
)
def test_where_held_out_x_tell_nothing_log_z_is_that_of_the_others(monkeypatch, fresh):
    estimator, data = make(20)
    looked = [torch.full((20,), 2.0), fresh]
    monkeypatch.setattr(held_out, "_log_partitions", lambda *args: looked.pop(0))
    before = estimator.proxy.network.log_ratio.clone()
    center_partition(estimator, data, data, "cpu")
    assert (before - estimator.proxy.network.log_ratio).item() == pytest.approx(2.0, abs=1e-5)


def test_a_proxy_of_pairs_is_not_centered():
    estimator, data = make(proxy="mlp")
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    center_partition(estimator, data, data, "cpu")
    assert all(torch.equal(value, before[name]) for name, value in estimator.state_dict().items())


def test_likelihoods_of_data_in_steps_are_those_of_spread_copies(monkeypatch):
    estimator, data = make(30)
    network = estimator.proxy.network
    network.gaps.fill_(1.0)
    monkeypatch.setattr(network, "dequantize", lambda context: context + 0.5)
    found = likelihood_losses(network, data.theta, estimator.embed(data.x))
    expected = -network.log_likelihood(data.theta, estimator.embed(data.x) + 0.5)
    torch.testing.assert_close(found, expected.repeat(8))


def test_likelihoods_in_a_space_that_is_learnt_do_not_decide():
    theta = PRIOR.sample((60,))
    x = theta + 0.2 * torch.randn(60, 2)
    flow = flow_nn(PRIOR, hidden_features=16, embedding_net=nn.Linear(2, 3))(theta, x)
    estimator = JeffreysEstimator(flow, theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn())
    looks, data = ProxyLooks(watch=True), Data(theta, x, torch.ones(60, 1), torch.arange(60))
    looks.look(estimator, data, 0, "cpu")
    looks.look(estimator, data, 8, "cpu")
    assert looks.plateau.steps == 0


def test_a_log_z_that_is_no_number_moves_nothing():
    estimator, data = make(20)
    data.x[3] = torch.nan
    before = estimator.proxy.network.log_ratio.clone()
    center_partition(estimator, data, data, "cpu")
    assert torch.equal(estimator.proxy.network.log_ratio, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda estimator, data, device: center_partition(estimator, data, data, device),
        lambda *a: best_pooling(*a, ones),
    ],
)
def test_models_are_looked_at_in_evaluation_mode(call):
    estimator, data = make(20)
    call(estimator.train(), data, "cpu")
    assert not estimator.training


def test_what_is_seen_of_the_proxy_has_its_names(monkeypatch):
    estimator, data = make(2)
    found = SimpleNamespace(
        nll=torch.tensor([2.0, 6.0]),
        log_partition=torch.tensor([-1.0, 5.0]),
        effective_sample_size=torch.tensor([0.25, 0.75]),
    )
    monkeypatch.setattr(held_out, "diagnose_proxy", lambda *args, **kwargs: found)
    looks = ProxyLooks(watch=False)
    looks.look(estimator, data, 0, "cpu")
    assert looks.seen == {
        "validation_loss_proxy": 4.0,
        "log_partition_mean": 2.0,
        "log_partition_std": 3.0,
        "effective_sample_size": 0.5,
    }


def test_rows_from_proposals_are_ranked_among_each_other():
    """The loss is that of the likelihood ratio, which no proposal and no normaliser changes."""
    estimator, x = gaussians(0.5), torch.randn(30, 2)
    theta = x + FLOW * torch.randn(30, 2)
    found = held_out._ranking_losses(estimator, theta, x, None)
    assert found.shape == (len(held_out._WEIGHTS), 30)
    for weight, losses in zip(held_out._WEIGHTS, found, strict=True):
        # Pools of two Gaussians around x are such, with the mean precision; bounds are far.
        precision = (1 - weight) / FLOW**2 + weight / PROXY**2
        squares = (theta.unsqueeze(1) - x).square().sum(-1)
        ratios = -0.5 * precision * squares - POOLS_PRIOR.log_prob(theta).unsqueeze(1)
        expected = ratios.logsumexp(dim=0) - ratios.diagonal()
        # The lower bound cuts parameters off that lie three nats below the best ones.
        torch.testing.assert_close(losses.mean(), expected.mean(), atol=0.1, rtol=0)
    torch.testing.assert_close(found[0], expected_of_the_flow(theta, x))


def expected_of_the_flow(theta, x):
    ratios = -0.5 * (theta.unsqueeze(1) - x).square().sum(-1) / FLOW**2
    ratios = ratios - POOLS_PRIOR.log_prob(theta).unsqueeze(1)
    return ratios.logsumexp(dim=0) - ratios.diagonal()


@pytest.mark.parametrize(("scale", "heard"), [(FLOW, False), (0.6, True)])
def test_rows_from_proposals_choose_the_weight(scale, heard):
    """Rows as the flow says leave it alone; where they are nearer to x, the proxy is heard."""
    estimator, x = gaussians(0.0), 3 * torch.randn(200, 2)
    theta = x + scale * torch.randn(200, 2)
    data = Data(theta, x, torch.ones(200, 1), torch.arange(200))
    found = best_pooling(estimator, data, "cpu", ones, from_prior=False)
    assert (found.weight >= 0.5) == heard
