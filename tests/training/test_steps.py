"""A step: both models descend, the multipliers move, and what weighs nothing trains nothing."""

import math

import pytest
import torch
from torch import nn
from trainings import PRIOR, equal, make, simulate_bent, snapshot

from sbi_jeffreys.costs import HuberCost, LinearCost
from sbi_jeffreys.draws import Draws
from sbi_jeffreys.duals import FixedWeights, ResilientDual
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.layers.conditional_gaussian import ConditionalGaussian
from sbi_jeffreys.objective import Limits
from sbi_jeffreys.optim.muon import Muon
from sbi_jeffreys.training import steps as steps_module
from sbi_jeffreys.training.descent import flow_optimizer


@pytest.mark.parametrize(
    ("weights", "moving"),
    [
        (ResilientDual((LinearCost(), HuberCost(1.0, 3.0), LinearCost())), [False, True, False]),
        ("dual_quadratic", [True, True, True]),
        ("fixed", [False, False, False]),
    ],
    ids=["linear and Huber", "quadratic", "fixed"],
)
def test_multipliers_move_and_stay_finite(weights, moving):
    training, data, held_out = make(weights=weights)
    initial = training.dual.multipliers.clone()
    training.start(held_out)
    for _ in range(4):
        training.advance(data, held_out)
        assert training.dual.multipliers.isfinite().all()
        assert (training.dual.multipliers >= 0).all()
    assert (training.dual.multipliers != initial).tolist() == moving


def test_default_dual_stays_finite():
    training, data, held_out = make(weights="dual")
    training.start(held_out)
    for _ in range(4):
        training.advance(data, held_out)
        assert training.dual.multipliers.isfinite().all()
        assert training.dual.slacks.isfinite().all()
        assert training.dual.multipliers[[0, 2]].tolist() == [1, 1]


@pytest.mark.parametrize("weights", ["fixed", "ml", "dual"])
def test_both_models_learn(weights):
    training, data, held_out = make(300, weights, simulator=simulate_bent, training_batch_size=50)
    training.start(held_out)
    before = training.best_loss
    proxy_before = training.validate(held_out).get("validation_loss_proxy")
    records = [training.advance(data, held_out) for _ in range(20)]
    # Both start from the linear posterior, which takes the bend for noise.
    assert records[-1]["validation_loss"] < before - 0.5
    if weights != "ml":
        # The prior's entropy is log 4: the proxy's base.
        assert records[-1]["validation_loss_proxy"] < math.log(4) - 0.3
        assert records[-1]["validation_loss_proxy"] < proxy_before - 0.1
        assert records[-1]["divergence_reverse"] < 1
        assert abs(records[-1]["log_partition_mean"]) < 1


def test_data_multipliers_survive_overfitting():
    """50 simulations, 30 epochs: the flow beats the held-out loss on its own training data.

    Measured on training data the constraints would then look satisfied, and training freeze.
    """
    training, data, held_out = make(50, "dual_quadratic", learning_rate=1e-2)
    training.start(held_out)
    records = []
    for _ in range(30):
        before = snapshot(training.estimator.flow)
        records.append(training.advance(data, held_out))
    assert records[-1]["training_loss"] < records[-1]["validation_loss"] - 0.2
    # D1 and D3 are at least the margin of the entropy estimate, 0.1, and so are their averages,
    # less what is left of an estimate that is made from few draws.
    for name in ("forward", "proxy"):
        assert min(record[f"multiplier_{name}"] for record in records) > 0.05
    assert not equal(before, snapshot(training.estimator.flow))


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_each_model_is_clipped_by_its_own_norm(clip):
    training, data, _ = make(clip_max_norm=clip, training_batch_size=50)
    # Norms that Adam sees: the gradients stay in place after the step.
    training.run_epoch(data)
    norms = [
        torch.cat([p.grad.flatten() for p in o.parameters]).norm().item()
        for o in training.optimizers
    ]
    if clip is None:
        assert min(norms) > 1e-2
    else:
        # Each at the limit, not both together. Float32.
        assert norms == pytest.approx([clip, clip], rel=1e-2)


def test_a_divergence_that_weighs_nothing_trains_nothing():
    training, data, _ = make(weights=FixedWeights((0.0, 0.0, 1.0)))
    before = snapshot(training.estimator.flow)
    proxy = snapshot(training.estimator.proxy)
    training.run_epoch(data)
    assert equal(before, snapshot(training.estimator.flow))
    assert not equal(proxy, snapshot(training.estimator.proxy))


def test_a_price_that_is_given_is_the_one_that_is_used():
    dual = ResilientDual((LinearCost(2.0), HuberCost(1.0, 0.5), LinearCost(0.7)))
    training, data, held_out = make(weights=dual)
    training.start(held_out)
    training.advance(data, held_out)
    forward, reverse, proxy = training.dual.multipliers.tolist()
    assert (forward, proxy) == (2.0, 0.7)
    assert 0 <= reverse <= 0.5


@pytest.mark.parametrize(
    ("common", "expected"),
    [(0, [True, True, True, False, True, False]), (2, [True, False] * 3)],
    ids=["after the first steps", "from the first on, where its Gaussians move as one"],
)
def test_the_proxy_learns_in_every_other_step(common, expected, monkeypatch):
    monkeypatch.setattr(steps_module, "_WHOLE", 2)
    training, data, _ = make(proxy="likelihood", common=common)
    batches = list(data.batches(5, "cpu", shuffle=True))
    moved, estimates = [], []
    for batch in batches[:6]:
        flow, proxy = snapshot(training.estimator.flow), snapshot(training.estimator.proxy)
        estimates.append(training.step(*batch)[1].item())
        assert not equal(flow, snapshot(training.estimator.flow))
        moved.append(not equal(proxy, snapshot(training.estimator.proxy)))
    assert moved == expected
    # Between two estimates of D2 the last one stands.
    assert estimates[3] == estimates[2] != estimates[4] == estimates[5]


@pytest.mark.parametrize(
    "why",
    [
        {},
        {"proxy": "likelihood", "draws": Draws(simulated=0.0)},
        {"proxy": "likelihood", "draws": Draws(simulated=0.04)},
        {"proxy": "likelihood", "draws": Draws(every=1)},
        {"proxy": "likelihood", "from_prior": False},
    ],
    ids=["no likelihood", "no pairs", "no pair in a batch of ten", "told so", "later rounds"],
)
def test_all_steps_are_whole_where_the_proxy_simulates_nothing(monkeypatch, why):
    monkeypatch.setattr(steps_module, "_WHOLE", 0)
    training, data, _ = make(**why)
    for batch in data.batches(10, "cpu", shuffle=True):
        proxy = snapshot(training.estimator.proxy)
        training.step(*batch)
        assert not equal(proxy, snapshot(training.estimator.proxy))


def test_a_lower_price_moves_the_multiplier_of_reverse():
    settings = {"weights": ResilientDual((LinearCost(), HuberCost(30.0, 4.0), LinearCost()))}
    tight, data, _ = make(**settings)
    torch.manual_seed(1)
    tight.run_epoch(data)
    free, data, _ = make(**settings)
    free.patience.stiffness = 0.0
    torch.manual_seed(1)
    free.run_epoch(data)
    assert free.dual.multipliers[1] < tight.dual.multipliers[1]


def test_adam_trains_the_gaussian_given_x_and_muon_the_coupling_layers():
    training = make()[0]
    muon = training.optimizers[0]
    assert isinstance(muon, Muon)
    stacked = {id(p) for stack in muon._stacks for p in stack}
    names = {name for name, p in training.estimator.named_parameters() if id(p) in stacked}
    layers = training.estimator.flow.net.transform.transforms
    (place,) = (i for i, layer in enumerate(layers) if isinstance(layer, ConditionalGaussian))
    assert names
    assert all(f"transforms.{place}." not in name for name in names)


def test_the_embedding_and_maximum_likelihood_stay_with_adam():
    theta, x = PRIOR.sample((50,)), torch.randn(50, 16)
    flow = flow_nn(PRIOR, hidden_features=24, embedding_net=nn.Linear(16, 16))(theta, x)
    estimator = JeffreysEstimator(flow, theta, x)
    muon = flow_optimizer(estimator, 1e-3, 0.0, muon=True)
    stacked = {id(p) for stack in muon._stacks for p in stack}
    assert stacked
    assert all(id(p) not in stacked for p in estimator.embedding_net.parameters())
    adam = make(weights="ml", weight_decay=0.3)[0].optimizers[0]
    assert not isinstance(adam, Muon)
    assert adam.weight_decay == 0.3


def test_an_epoch_is_in_training_mode():
    training, data, _ = make()
    training.estimator.eval()
    training.run_epoch(data)
    assert training.estimator.training


def test_the_dual_of_a_trial_sees_a_share_of_the_reverse_divergence():
    training, data, _ = make()
    training.patience.stiffness = 0.1
    before, batch = training.dual, next(data.batches(10, "cpu", shuffle=False))
    reverse = training.step(*batch)[1]
    expected, other = (
        training.weighting.step(before, training._divergences(share * reverse)).multipliers
        for share in (0.1, 1.0)
    )
    assert torch.equal(training.dual.multipliers, expected)
    assert not torch.equal(expected, other)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("from_prior", [False, True])
def test_negatives_are_the_bases_where_theta_is(later, from_prior, monkeypatch):
    """Which it is not in later rounds, of whatever loss."""
    asked, negatives = [], steps_module.negatives

    def spy(*args, from_base):
        asked.append(from_base)
        return negatives(*args, from_base=from_base)

    monkeypatch.setattr(steps_module, "negatives", spy)
    hook = (lambda theta, x, masks: theta.sum(dim=1)) if later else None
    training, data, _ = make(forward_loss=hook, from_prior=from_prior)
    training.step(*next(data.batches(10, "cpu", shuffle=False)))
    assert asked == [from_prior]


def objective(draws=None, weights=(1.0, 1.0, 1.0), **settings):
    torch.manual_seed(1)
    training, data, _ = make(draws=draws or Draws(), **settings)
    with torch.no_grad():
        for parameter in training.estimator.proxy.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = next(data.batches(50, "cpu", shuffle=False))
    return training.gradient(batch, weights, whole=True)[0][2].item()


def test_the_gauge_weighs_what_it_is_told_to():
    none, once, thrice = (objective(Draws(gauge=gauge)) for gauge in (0.0, 1.0, 3.0))
    assert once > none
    assert thrice - none == pytest.approx(3 * (once - none), rel=1e-3)


def test_limits_are_those_of_the_settings():
    tight, wide = (
        objective(Draws(gauge=0.0, simulated=0.0), (0.0, 1.0, 0.0), limits=Limits(s, s))
        for s in (1e-3, 1e3)
    )
    assert tight < 0.1 * wide


def test_without_a_proxy_the_memory_is_longer():
    for weights, share in (("ml", 1 / 4), ("dual", 1.0)):
        training, _, _ = make(weights=weights)
        with torch.no_grad():
            for parameter in training.estimator.parameters():
                parameter.zero_()
        training.average.begin_anew()
        with torch.no_grad():
            for parameter in training.estimator.parameters():
                parameter.fill_(1.0)
        training.average.update(4)
        with training.average.in_place():
            assert next(training.estimator.parameters()).detach().unique().item() == pytest.approx(
                share
            )
