"""What ``train`` takes and returns: estimators, objectives, the record, what is shown, pickling."""

import pickle
import re

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import LRUEmbedding
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import nn
from torch.distributions import MultivariateNormal
from trainers import PRIOR, Shaking, make, weights_of

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.diagnostics import diagnose_proxy
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training.record import EPOCH_KEYS, RUN_KEYS
from sbi_jeffreys.utils.quiet import QuietTracker
from sbi_jeffreys.utils.row_losses import mean_and_error

FAST = ("coupling_nsf", "maf", "mdn", "made", "zuko_nice", "zuko_maf", "zuko_nsf", "zuko_ncsf")

SLOW = ("nsf", "maf_rqs", "zuko_sospf", "zuko_naf", "zuko_unaf", "zuko_gf", "zuko_bpf")

# nflows calls what torch has deprecated.
NFLOWS = "ignore:torch.triangular_solve is deprecated"

PICKLING = "ignore:When the inference object is pickled"


class RecordingTracker(QuietTracker):
    """Tracker that keeps what it gets, and the length of the record at that time."""

    def __init__(self) -> None:
        self.trainer: JeffreysNPE | None = None
        self.epochs: list[tuple[int, dict, int]] = []
        self.runs: list[tuple[str, float]] = []

    def log_metrics(self, metrics, step=None):
        assert self.trainer is not None
        self.epochs.append((step, dict(metrics), len(self.trainer.summary["training_loss"])))

    def log_metric(self, name, value, step=None):
        self.runs.append((name, value))


# Estimators


@pytest.mark.filterwarnings(NFLOWS)
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_named_estimators_train_and_sample(name, simulations):
    trainer = make(name)
    estimator = trainer.append_simulations(*simulations).train(max_num_epochs=1)
    assert isinstance(estimator, ConditionalDensityEstimator)
    # The estimator itself: rejection by the prior can take minutes for a flow of one epoch.
    samples = estimator.sample(torch.Size((3,)), torch.zeros(2, 2))
    assert samples.shape == (3, 2, 2)
    assert estimator.log_prob(samples, torch.zeros(2, 2)).isfinite().all()
    assert trainer.build_posterior().potential(torch.zeros(1, 2), x=torch.zeros(2)).isfinite()
    assert not weights_of(trainer).isnan().any()


@pytest.mark.parametrize("z_score", ["independent", "structured", "none"])
@pytest.mark.parametrize("model", ["maf", "zuko_nsf"])
def test_posterior_nn_with_embedding_and_z_scoring(model, z_score, simulations):
    build = posterior_nn(
        model, z_score_theta=z_score, z_score_x=z_score, embedding_net=nn.Linear(2, 3)
    )
    trainer = make(build)
    estimator = trainer.append_simulations(*simulations).train(max_num_epochs=1)
    # The proxy sees what the flow sees: three features.
    assert estimator.proxy.network.gauge[0].in_features == 3
    assert torch.isfinite(torch.tensor(trainer.summary["validation_loss"])).all()


@pytest.mark.parametrize("model", ["maf", "mdn", "zuko_nsf"])
def test_embedding_is_evaluated_once_per_x_and_step(model, simulations):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.rows: list[int] = []

        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                self.rows.append(len(x))
            return self.linear(x)

    counts = []
    for epochs in (1, 3):
        embedding = Counting()
        trainer = make(posterior_nn(model, embedding_net=embedding))
        trainer.append_simulations(*simulations)
        trainer.train(max_num_epochs=epochs, training_batch_size=24)
        net = next(m for m in trainer._neural_net.modules() if isinstance(m, Counting))
        counts.append(net.rows)
    # Building the network may look at x too: the difference of the runs is two epochs of three
    # batches of 72 / 3 rows.
    assert counts[1][len(counts[0]) :] == [24] * 6


def test_images_need_an_embedding_only(simulations):
    theta, _ = simulations
    x = theta[:, :1, None] + 0.1 * torch.randn(80, 4, 4)
    build = posterior_nn("maf", embedding_net=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    trainer = make(build)
    trainer.append_simulations(theta, x).train(max_num_epochs=1)
    assert trainer.build_posterior().potential(theta[:1], x=x[:1]).isfinite().all()


# The estimator that train returns


def embedding_by(net, model):
    """Return what builds a flow of this name behind an embedding network."""
    ours = model == "coupling_nsf"
    return flow_nn(PRIOR, embedding_net=net) if ours else posterior_nn(model, embedding_net=net)


@pytest.mark.parametrize("objective", ["dual", "ml"])
@pytest.mark.parametrize("model", ["maf", "coupling_nsf"])
def test_an_embedding_that_is_not_learnt_stays_what_it_is(model, objective, simulations):
    """Both models begin with what it makes of x in evaluation, and are judged by that."""
    theta, x = simulations
    net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh())
    net.train()(x + 1)
    net.requires_grad_(False).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trainer = make(embedding_by(net, model), objective=objective).append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=2)
    assert not any(module.training for module in net.modules())
    assert estimator.train().flow.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_a_learnt_batch_normalisation_is_averaged_whole(objective, simulations):
    """Averaged weights go with averaged statistics, and those of the last step stay theirs."""
    net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh())
    build = embedding_by(net, "coupling_nsf")
    trainer = make(build, objective=objective).append_simulations(*simulations)
    estimator = trainer.train(max_num_epochs=4, training_batch_size=10)
    estimator.load_state_dict(trainer._training.last_weights)
    norm = next(m for m in estimator.modules() if isinstance(m, nn.BatchNorm1d))
    last = [norm.weight.clone(), norm.running_mean.clone(), norm.running_var.clone()]
    with trainer._training.average.in_place():
        averaged = [norm.weight.clone(), norm.running_mean.clone(), norm.running_var.clone()]
    assert not any(map(torch.equal, last, averaged))
    assert all(map(torch.equal, last, (norm.weight, norm.running_mean, norm.running_var)))


@pytest.mark.parametrize("model", ["maf", "coupling_nsf"])
def test_an_embedding_with_complex_weights(model):
    """Optimizers in one kernel take real ones only."""
    theta = PRIOR.sample((40,))
    x = theta[:, None] + 0.1 * torch.randn(40, 5, 2)
    net = LRUEmbedding(2, 4, state_dim=4, hidden_dim=4, num_blocks=1)
    before = [p.detach().clone() for p in net.parameters() if p.is_complex()]
    trainer = make(embedding_by(net, model)).append_simulations(theta, x)
    trainer.train(max_num_epochs=2)
    # Those at the last step: held-out rows may prefer the start.
    after = [p for p in trainer._training.last_weights.values() if p.is_complex()]
    assert before
    assert not any(map(torch.equal, before, after))


def test_estimator_carries_the_proxy(simulations):
    theta, x = simulations
    estimator = make().append_simulations(theta, x).train(max_num_epochs=1)
    outside = torch.full((1, 2), 2.0)
    ratio = estimator.proxy.log_ratio(theta[:5], x[:5])
    density = estimator.proxy.log_prob_unnormalized(theta[:5], x[:5])
    assert ratio.shape == density.shape == (1, 5)
    # The prior is uniform on a square of area 4; float32 sums of two numbers of order one.
    torch.testing.assert_close(density, ratio - torch.log(torch.tensor(4.0)), atol=1e-6, rtol=0)
    assert estimator.proxy.log_prob_unnormalized(outside, x[:1]).item() == -torch.inf
    # The pool is in tests/test_pool.py; without weight there is none.
    estimator.weight = 0.0
    torch.testing.assert_close(
        estimator.log_prob(theta[None, :5], x[:5]), estimator.flow.log_prob(theta[None, :5], x[:5])
    )


def test_maximum_likelihood_has_no_proxy(simulations):
    trainer = make(objective="ml")
    assert trainer.append_simulations(*simulations).train(max_num_epochs=1).proxy is None
    for key in ("validation_loss_proxy", "divergence_reverse", "divergence_proxy"):
        assert torch.tensor(trainer.summary[key]).isnan().all(), key


@pytest.mark.parametrize("objective", ["dual", "dual_quadratic", "fixed", "ml"])
def test_objectives(objective, simulations):
    trainer = make(objective=objective)
    trainer.append_simulations(*simulations).train(max_num_epochs=2)
    multipliers = [trainer.summary[f"multiplier_{k}"][-1] for k in ("forward", "reverse", "proxy")]
    assert (multipliers == [1.0, 0.0, 0.0]) == (objective == "ml")
    assert (multipliers == [1.0, 1.0, 1.0]) == (objective == "fixed")


# The record


@pytest.mark.parametrize("num", [1, 3])
def test_max_num_epochs_is_exact(num, simulations):
    trainer = make()
    trainer.append_simulations(*simulations).train(max_num_epochs=num)
    assert set(trainer.summary) == {*EPOCH_KEYS, *RUN_KEYS, "pool_weight"}
    assert {len(trainer.summary[key]) for key in EPOCH_KEYS} == {num}
    assert trainer.summary["epochs_trained"] == [num]
    best = trainer.summary["best_validation_loss"]
    # The initial weights compete too.
    assert len(best) == 1
    assert trainer._training.best_loss <= min(trainer.summary["validation_loss"])
    # Here the best are returned, and not the first.
    assert best[0] <= min(trainer.summary["validation_loss"])


def test_stop_after_epochs(simulations):
    # Without a proxy, whose price is tried first, and with steps enough to count as an epoch.
    trainer = make(objective="ml")
    trainer.append_simulations(*simulations)
    # A rate that changes no float32 weight: no epoch can improve on the first look.
    trainer.train(learning_rate=1e-30, stop_after_epochs=3, training_batch_size=10)
    assert trainer.summary["epochs_trained"] == [3]


def test_tracker_hears_of_each_epoch_at_once(simulations):
    tracker = RecordingTracker()
    trainer = tracker.trainer = make(tracker=tracker)
    trainer.append_simulations(*simulations).train(max_num_epochs=3)
    assert [(step, seen) for step, _, seen in tracker.epochs] == [(0, 1), (1, 2), (2, 3)]
    for step, metrics, _ in tracker.epochs:
        assert metrics["validation_loss"] == trainer.summary["validation_loss"][step]
        assert {"multiplier_reverse", "log_partition_mean", "training_loss"} <= set(metrics)
    names = ["epochs_trained", "best_validation_loss", "pool_weight"]
    assert [name for name, _ in tracker.runs] == names


def test_best_weights_are_returned(simulations):
    theta, x = simulations
    tracker = Shaking()
    tracker.scale = 0.2
    trainer = tracker.trainer = make(tracker=tracker)
    trainer.append_simulations(theta, x)
    held_out = (theta[:20], x[:20])
    estimator = trainer.train(max_num_epochs=3, validation_data=held_out)
    losses = trainer.summary["validation_loss"]
    assert losses[-1] > min(losses), "the last epoch must not be the best, or this tests nothing"
    found = -estimator.flow.log_prob(held_out[0][None], held_out[1]).mean().item()
    # The same numbers summed in float32.
    assert found == pytest.approx(trainer.summary["best_validation_loss"][0], abs=1e-5)


def test_ten_rows_do_not_outweigh_the_linear_posterior():
    """The best of many epochs on ten held-out rows is no better than what is exact."""
    # Draws on which it is better by 0.13 nats, the last epoch worse by one nat.
    torch.manual_seed(2)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((60,))
    x = theta + 0.5 * torch.randn(60, 2)
    held_out = (theta[50:], x[50:])

    def train(trainer, num, rate, **kwargs):
        arguments = {"max_num_epochs": num, "learning_rate": rate, "validation_data": held_out}
        return trainer.train(**arguments, **kwargs).log_prob(theta[None], x).detach()

    def new():
        trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, objective="ml")
        return trainer.append_simulations(theta[:50], x[:50])

    first = train(new(), 1, 1e-30)
    trainer = new()
    found = train(trainer, 60, 1e-3)
    losses = trainer.summary["validation_loss"]
    # Something was learnt, by the record, but not enough to say so.
    assert min(losses) < trainer.summary["best_validation_loss"][0]
    assert torch.equal(found, first)
    # Training goes on from where it was all the same.
    train(trainer, trainer.epoch + 1, 1e-3, resume_training=True)
    assert losses[-1] > trainer.summary["best_validation_loss"][0] + 0.5


def test_a_loader_yields_the_held_out_rows_in_one_order(simulations):
    trainer = make()
    trainer.append_simulations(*simulations)
    trainer.train(max_num_epochs=1, dataloader_kwargs={"batch_size": 8, "drop_last": False})
    loader = trainer.get_dataloaders(0, 8, 0.1, True, {"batch_size": 8, "drop_last": False})[1]
    first, second = (
        torch.cat([batch[0] for batch in loader.batches(8, "cpu", shuffle=False)]) for _ in range(2)
    )
    assert torch.equal(first, second)


# What is shown


def test_silence(simulations, capfd):
    trainer = make()
    trainer.append_simulations(*simulations).train(max_num_epochs=2)
    assert capfd.readouterr() == ("", "")


def test_progress_bar_shows_loss_and_multipliers(simulations, capfd):
    trainer = make(show_progress_bars=True)
    trainer.append_simulations(*simulations).train(max_num_epochs=2)
    out, err = capfd.readouterr()
    assert out == ""
    loss = trainer.summary["validation_loss"][-1]
    reverse = trainer.summary["multiplier_reverse"][-1]
    assert f"held-out NLL={loss:.3f}" in err
    assert f"multipliers=1.00 {reverse:.2f} 1.00" in err


def test_train_summary(simulations, capfd):
    trainer = make()
    trainer.append_simulations(*simulations).train(max_num_epochs=2, show_train_summary=True)
    out = capfd.readouterr().out
    assert re.search(r"Epochs trained: 2\b", out)
    assert f"{trainer.summary['best_validation_loss'][0]:.4f}" in out


# Pickling


@pytest.mark.filterwarnings(PICKLING)
@pytest.mark.parametrize("estimator", ["coupling_nsf", "maf", "mdn"])
def test_trainer_survives_pickling(estimator, simulations):
    options = {"training_batch_size": 20, "max_num_epochs": 2}
    trainer = make(estimator)
    trainer.append_simulations(*simulations)
    # A function that cannot be pickled must not get in the way.
    trainer.train(calibration_kernel=lambda x: torch.ones(len(x)), **options)
    loaded = pickle.loads(pickle.dumps(trainer))
    for each in (trainer, loaded):
        each._tracker = QuietTracker()
        each.train(resume_training=True, **options | {"max_num_epochs": 4})
    assert torch.equal(weights_of(trainer), weights_of(loaded))
    assert loaded.summary["epochs_trained"] == [2, 2]


@pytest.mark.filterwarnings(PICKLING)
@pytest.mark.parametrize("estimator", ["coupling_nsf", "maf"])
@pytest.mark.parametrize("trained", [False, True])
def test_what_was_named_is_built_again_after_pickling(estimator, trained, simulations):
    trainer = make(estimator).append_simulations(*simulations)
    if trained:
        trainer.train(max_num_epochs=1)
    loaded = pickle.loads(pickle.dumps(trainer))
    for each in (trainer, loaded):
        each._tracker = QuietTracker()
        each.train(max_num_epochs=2, retrain_from_scratch=True, force_first_round_loss=True)
    assert torch.equal(weights_of(trainer), weights_of(loaded))


@pytest.mark.filterwarnings(PICKLING)
@pytest.mark.parametrize("what", ["density_estimator", "proxy"])
def test_what_was_a_function_is_not(what, simulations):
    build = posterior_nn("mdn") if what == "density_estimator" else proxy_nn("mlp")
    trainer = make(**{what: build}).append_simulations(*simulations)
    loaded = pickle.loads(pickle.dumps(trainer))
    with pytest.raises(RuntimeError, match=r"copied or unpickled.*make a new JeffreysNPE"):
        loaded.train(max_num_epochs=1)


@pytest.mark.parametrize("estimator", ["coupling_nsf", "maf", "mdn"])
def test_posterior_survives_pickling(estimator, simulations):
    theta, x = simulations
    trainer = make(estimator)
    trainer.append_simulations(theta, x).train(max_num_epochs=1)
    posterior = trainer.build_posterior()
    loaded = pickle.loads(pickle.dumps(posterior))
    assert torch.equal(posterior.potential(theta[:4], x=x[0]), loaded.potential(theta[:4], x=x[0]))
    ratio = loaded.posterior_estimator.proxy.log_ratio(theta[:4], x[:4])
    assert torch.equal(trainer._neural_net.proxy.log_ratio(theta[:4], x[:4]), ratio)


def test_the_mean_of_log_z_is_zero_in_the_end(simulations):
    trainer = make("coupling_nsf")
    theta, x = simulations
    estimator = trainer.append_simulations(theta, x).train(max_num_epochs=5)
    found = diagnose_proxy(estimator, theta, x, num_draws=256).log_partition
    mean = found[trainer.train_indices].mean()
    apart, error = mean_and_error(found[trainer.val_indices] - mean)
    # 72 x that it was trained on, and 8 others as far as these are sure, at 64 draws each.
    assert abs(mean + apart**3 / (apart**2 + error**2)) < 0.1
