"""A likelihood that is wrong is found out, one that is right is not; the better model is kept."""

import math

import pytest
import torch
import torch.nn.functional as F
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training import joint_trainer, patience, second_proxy
from sbi_jeffreys.training.batches import Data
from sbi_jeffreys.utils.quiet import QuietTracker

PRIOR = BoxUniform(torch.tensor([1.0, 0.2]), torch.tensor([3.0, 0.8]))


def linear(theta: Tensor) -> Tensor:
    return theta + 0.2 * torch.randn_like(theta)


def ring(theta: Tensor) -> Tensor:
    """A point at a random angle: its distance from the origin is what says something."""
    angle = 2 * math.pi * torch.rand(len(theta))
    direction = torch.stack((angle.cos(), angle.sin()), dim=1)
    return theta[:, :1] * direction + 0.1 * torch.randn(len(theta), 2)


def useless(theta: Tensor) -> Tensor:
    """The linear x, and beside it rings of which no parameter knows."""
    return torch.cat((linear(theta), ring(2 * torch.ones_like(theta))), dim=1)


def as_data(theta: Tensor, x: Tensor) -> Data:
    return Data(theta, x, torch.ones(len(theta), 1), torch.arange(len(theta)))


def at_the_start(simulator, num=1000, held_out=200, proxy="likelihood"):
    """Return an estimator at its start, the linear likelihood, and its simulations."""
    theta = PRIOR.sample((num + held_out,))
    x = simulator(theta)
    # Useless columns, too.
    build = flow_nn(PRIOR, hidden_features=16, columns=range(x.shape[1]))
    flow = build(theta[:num], x[:num])
    estimator = JeffreysEstimator(
        flow, theta[:num], x[:num], base=Base(PRIOR, theta[:num]), build_proxy=proxy_nn(proxy)
    )
    return estimator, as_data(theta[:num], x[:num]), as_data(theta[num:], x[num:])


@pytest.mark.parametrize(
    ("simulator", "doubtful"), [(linear, False), (ring, True), (useless, False)]
)
def test_a_likelihood_is_doubted_where_it_misses_something_of_theta(simulator, doubtful):
    estimator, data, held_out = at_the_start(simulator)
    found = second_proxy.likelihood_is_doubtful(estimator, data, held_out, "cpu")
    assert found is doubtful


def test_a_critic_that_finds_something_in_x_alone_gains_nothing():
    """It tells data from simulations, and that says nothing of theta."""
    estimator, data, held_out = at_the_start(useless)
    rows = [(d.theta, estimator.embed(d.x)) for d in (data, held_out)]
    network = estimator.proxy.network
    critic = second_proxy._train_critic(network, *rows)
    assert critic is not None
    fresh = network.simulate(rows[1][0])
    with torch.no_grad():
        confusion = second_proxy._confusion(critic, network, *rows[1], rows[1][0], fresh)
    assert confusion < 2 * math.log(2) - 0.1
    gains = second_proxy._gains(critic, estimator, *rows[1])
    assert gains.mean().abs() < 0.1


def test_a_critic_that_learns_nothing_is_none():
    estimator, _, held_out = at_the_start(ring)
    network = estimator.proxy.network
    # Data of the likelihood's own.
    rows = [(theta, network.simulate(theta)) for theta in (torch.rand(900, 2), held_out.theta)]
    assert second_proxy._train_critic(network, *rows) is None


def test_recorded_steps_of_the_critic_are_its_steps(monkeypatch):
    estimator, data, held_out = at_the_start(ring)
    rows = [(d.theta, estimator.embed(d.x)) for d in (data, held_out)]
    found = []
    for recorded in (second_proxy._RECORDED, None):
        monkeypatch.setattr(second_proxy, "_RECORDED", recorded)
        torch.manual_seed(1)
        critic = second_proxy._train_critic(estimator.proxy.network, *rows)
        found.append([*critic.parameters(), torch.rand(1)])
    assert all(map(torch.equal, *found))


def test_few_rows_and_other_proxies_are_not_doubted():
    estimator, data, held_out = at_the_start(ring, held_out=49)
    assert not second_proxy.likelihood_is_doubtful(estimator, data, held_out, "cpu")
    estimator, data, held_out = at_the_start(ring, proxy="mlp")
    assert not second_proxy.likelihood_is_doubtful(estimator, data, held_out, "cpu")


def test_a_proxy_of_which_held_out_rows_want_nothing_is_rejected():
    estimator, _, held_out = at_the_start(linear, held_out=20)
    estimator.weight = 0.0
    assert second_proxy.is_rejected(estimator, 0.5, held_out)
    # A flow that says the same has no use for it, and without a proxy there is no D2.
    for reverse in (0.05, math.nan):
        assert not second_proxy.is_rejected(estimator, reverse, held_out)
    estimator.weight = 0.125
    assert not second_proxy.is_rejected(estimator, 0.5, held_out)
    estimator, _, few = at_the_start(linear, held_out=19)
    assert not second_proxy.is_rejected(estimator, 0.5, few)


def test_the_better_one_is_better_by_more_than_its_error():
    right, _, held_out = at_the_start(linear)
    wrong, _, _ = at_the_start(ring)
    assert second_proxy.is_better(right, wrong, held_out, "cpu")
    assert not second_proxy.is_better(wrong, right, held_out, "cpu")
    assert not second_proxy.is_better(right, right, held_out, "cpu")


# In a training


THETA = PRIOR.sample((150,))


def make(**kwargs) -> JeffreysNPE:
    made = JeffreysNPE(PRIOR, seed=0, show_progress_bars=False, tracker=QuietTracker(), **kwargs)
    torch.manual_seed(0)
    return made.append_simulations(THETA, ring(THETA))


def fit(made: JeffreysNPE, **kwargs):
    return made.train(stop_after_epochs=1, learning_rate=2e-3, **kwargs)


def weights(estimator) -> Tensor:
    """Of the flow: those of the proxy end with a constant that is drawn for."""
    return torch.cat([value.flatten().double() for value in estimator.flow.state_dict().values()])


@pytest.fixture
def short(monkeypatch):
    """Let patience begin at once: trainings of a few steps end by themselves."""
    monkeypatch.setattr(patience, "_FIRST_STEPS", 0)


@pytest.fixture
def once(short, monkeypatch):
    """What the training gives whose proxy nobody doubts."""
    with monkeypatch.context() as patch:
        patch.setattr(joint_trainer, "is_rejected", lambda *args: False)
        patch.setattr(joint_trainer, "likelihood_is_doubtful", lambda *args: False)
        made = make()
        estimator = fit(made)
    return made, estimator


@pytest.mark.parametrize("doubt", ["is_rejected", "likelihood_is_doubtful"])
@pytest.mark.parametrize("better", [False, True])
def test_held_out_data_choose(better, doubt, once, monkeypatch):
    for which in ("is_rejected", "likelihood_is_doubtful"):
        monkeypatch.setattr(joint_trainer, which, lambda *args, is_it=which == doubt: is_it)
    monkeypatch.setattr(joint_trainer, "is_better", lambda *args: better)
    made = make()
    estimator = fit(made)
    assert estimator is made._neural_net is made._training.estimator
    assert estimator.spec["proxy"] == ("mlp" if better else "likelihood")
    if not better:
        assert torch.equal(weights(estimator), weights(once[1]))
    # One call, one entry; the epochs are those of both.
    (epochs,) = made.summary["epochs_trained"]
    assert epochs == len(made.summary["validation_loss"]) > once[0].summary["epochs_trained"][0]
    assert made.summary["best_validation_loss"] == [made._training.kept_loss]
    assert made.summary["pool_weight"] == [estimator.weight]
    # What was asked for is what a training from scratch begins with.
    assert made._spec["proxy"] == "likelihood"
    made.train(resume_training=True, max_num_epochs=made.epoch + 1, stop_after_epochs=3)
    assert made._neural_net is estimator
    assert made.build_posterior().sample((3,), x=torch.ones(2)).shape == (3, 2)


def test_interruption_of_the_second_keeps_the_first(once, monkeypatch):
    monkeypatch.setattr(joint_trainer, "likelihood_is_doubtful", lambda *args: True)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint_trainer, "is_better", interrupt)
    made = make()
    with pytest.raises(KeyboardInterrupt):
        fit(made)
    assert torch.equal(weights(made._neural_net), weights(once[1]))
    assert made._neural_net.spec["proxy"] == "likelihood"
    assert len(made.summary["epochs_trained"]) == 1


@pytest.mark.parametrize(
    ("made", "trained"),
    [
        ({"proxy": "mlp"}, {}),
        ({"proxy": proxy_nn("likelihood")}, {}),
        ({"objective": "fixed"}, {}),
        ({}, {"calibration_kernel": lambda x: torch.ones(len(x))}),
        ({}, {"max_num_epochs": 1}),
    ],
    ids=["mlp", "builder", "fixed", "kernel", "cut short"],
)
def test_nobody_doubts_what_was_asked_for(made, trained, short, monkeypatch):
    def refuse(*args):
        raise AssertionError("a second proxy")

    monkeypatch.setattr(joint_trainer, "is_rejected", refuse)
    monkeypatch.setattr(joint_trainer, "likelihood_is_doubtful", refuse)
    fit(make(**made), **trained)


@pytest.mark.slow
def test_a_wrong_likelihood_costs_nothing():
    """On data of which no mixture of three Gaussians is a model, with nothing forced."""
    theta = PRIOR.sample((2600,))
    x = torch.cat((ring(theta), ring(theta), ring(theta)), dim=1)
    losses = {}
    for objective in ("dual", "ml"):
        made = JeffreysNPE(PRIOR, objective=objective, seed=0, show_progress_bars=False)
        estimator = made.append_simulations(theta[:600], x[:600]).train()
        with torch.no_grad():
            losses[objective] = -estimator.log_prob(theta[None, 600:], x[600:]).mean().item()
        if objective == "dual":
            assert estimator.spec["proxy"] == "mlp"
    # By 0.1 to 0.4 nats on the simulators of the report; the first proxy loses as much.
    assert losses["dual"] < losses["ml"] + 0.05


@pytest.mark.parametrize("call", ["likelihood_is_doubtful", "is_better"])
def test_to_look_draws_nothing_from_the_training(call):
    """Which may be resumed; and it looks in evaluation mode."""
    estimator, data, held_out = at_the_start(linear)
    estimator.weight = 0.25
    estimator.train()
    before = torch.get_rng_state()
    if call == "is_better":
        second_proxy.is_better(estimator, estimator, held_out, "cpu")
    else:
        second_proxy.likelihood_is_doubtful(estimator, data, held_out, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert not estimator.training


@pytest.mark.parametrize(
    ("gain", "spread", "doubtful"), [(0.2, 0.0, True), (0.2, 10.0, False), (0.1, 0.0, False)]
)
def test_a_gain_counts_if_it_is_large_and_sure(gain, spread, doubtful, monkeypatch):
    estimator, data, held_out = at_the_start(linear, num=50, held_out=50)
    gains = gain + spread * torch.tensor([1.0, -1.0]).repeat(25)
    monkeypatch.setattr(second_proxy, "_train_critic", lambda *args: "a critic")
    monkeypatch.setattr(second_proxy, "_gains", lambda *args: gains)
    found = second_proxy.likelihood_is_doubtful(estimator, data, held_out, "cpu")
    assert found is doubtful


def test_the_critic_is_the_best_of_those_that_were_looked_at(monkeypatch):
    estimator, data, held_out = at_the_start(ring, num=200)
    rows = [(d.theta, estimator.embed(d.x)) for d in (data, held_out)]
    looks, confusion = [], second_proxy._confusion

    def watched(critic, *args):
        loss = confusion(critic, *args)
        if not torch.is_grad_enabled():
            weights = torch.nn.utils.parameters_to_vector(critic.layers.parameters())
            looks.append((loss.item(), weights.clone()))
        return loss

    monkeypatch.setattr(second_proxy, "_confusion", watched)
    critic = second_proxy._train_critic(estimator.proxy.network, *rows)
    best, weights = looks[0]
    for loss, found in looks:
        if loss < best - second_proxy._PROGRESS:
            best, weights = loss, found
    assert weights is not looks[-1][1]
    assert torch.equal(torch.nn.utils.parameters_to_vector(critic.layers.parameters()), weights)


def test_the_critic_sees_data_in_steps_spread_as_the_likelihood_does(monkeypatch):
    estimator, _, held_out = at_the_start(linear, num=50, held_out=50)
    network = estimator.proxy.network
    theta, context = held_out.theta, estimator.embed(held_out.x)
    critic = second_proxy._Critic(network, theta.shape[1], context.shape[1])
    torch.nn.init.normal_(critic.layers[-1].weight)
    monkeypatch.setattr(network, "dequantize", lambda context: context + 0.5)
    with torch.no_grad():
        found = second_proxy._confusion(critic, network, theta, context, theta, context)
        of_data, simulated = critic(theta, context + 0.5), critic(theta, context)
    torch.testing.assert_close(found, F.softplus(-of_data).mean() + F.softplus(simulated).mean())
