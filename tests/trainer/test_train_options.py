"""Options of ``train``, seeds and resuming."""

import pytest
import torch
from sbi.utils import BoxUniform
from trainers import NO_MEAN, NO_SUPPORT, Shaking, make, weights_of, without_durations

from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training import joint_trainer
from sbi_jeffreys.training.training import Training

# Seed and resuming


def test_seed_fixes_weights_and_leaves_the_global_generator(simulations):
    weights = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        trainer = make("coupling_nsf", seed=3)
        trainer.append_simulations(*simulations).train(max_num_epochs=2, training_batch_size=30)
        assert torch.equal(before, torch.get_rng_state())
        weights.append(weights_of(trainer))
    assert torch.equal(*weights)
    other = make("coupling_nsf", seed=4)
    other.append_simulations(*simulations).train(max_num_epochs=2, training_batch_size=30)
    assert not torch.equal(weights[0], weights_of(other))


def test_without_seed_the_global_generator_decides(simulations):
    weights = []
    for state in (1, 2, 1):
        torch.manual_seed(state)
        trainer = make(seed=None)
        trainer.append_simulations(*simulations).train(max_num_epochs=1)
        weights.append(weights_of(trainer))
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("estimator", ["coupling_nsf", "mdn"])
def test_resuming_continues_bit_for_bit(estimator, simulations):
    runs = []
    for epochs in ((6,), (3, 6)):
        # The third epoch is not the best, and yet resuming must go on from there.
        tracker = Shaking()
        # The linear part of our flow stands firm: the rest has to be shaken harder.
        tracker.scale = 1.0 if estimator == "coupling_nsf" else 0.2
        trainer = tracker.trainer = make(estimator, tracker=tracker)
        trainer.append_simulations(*simulations)
        for i, num in enumerate(epochs):
            trainer.train(max_num_epochs=num, training_batch_size=20, resume_training=i > 0)
            torch.rand(7)  # what happens in between must not matter
        losses = trainer.summary["validation_loss"]
        assert losses[2] > min(losses[:3]), "the third epoch must not be the best"
        runs.append(trainer)
    whole, parts = runs
    assert torch.equal(weights_of(whole), weights_of(parts))
    assert parts.summary["epochs_trained"] == [3, 3]
    expected = without_durations(whole)
    for key, values in without_durations(parts).items():
        assert torch.equal(values.nan_to_num(9e9), expected[key].nan_to_num(9e9)), key


@pytest.mark.parametrize("refused", ["too few rows", "no start"])
def test_a_call_that_trained_nothing_moves_no_random_numbers(refused, simulations, monkeypatch):
    theta, x = simulations
    whole, parts = (make().append_simulations(theta, x) for _ in range(2))
    whole.train(max_num_epochs=4, training_batch_size=20)
    parts.train(max_num_epochs=2, training_batch_size=20)
    options = {
        "too few rows": {"validation_fraction": 0.999},
        "no start": {"retrain_from_scratch": True, "force_first_round_loss": True},
    }[refused]
    with monkeypatch.context() as patch:
        if refused == "no start":
            patch.setattr(Training, "start", lambda *args: torch.rand(3) / None)
        with pytest.raises((ValueError, TypeError)):
            parts.train(training_batch_size=20, **options)
    parts.train(max_num_epochs=4, training_batch_size=20, resume_training=True)
    assert torch.equal(weights_of(whole), weights_of(parts))


def test_a_training_that_is_resumed_does_not_begin_anew(simulations):
    trainer = make().append_simulations(*simulations)
    trainer.train(max_num_epochs=1)
    with pytest.raises(ValueError, match="choose one of the two"):
        trainer.train(max_num_epochs=2, resume_training=True, retrain_from_scratch=True)


def test_simulations_appended_to_a_training_that_is_resumed(simulations):
    theta, x = simulations
    trainer = make().append_simulations(theta, x)
    trainer.train(max_num_epochs=1)
    trainer.append_simulations(theta[:30], x[:30])
    with pytest.warns(UserWarning, match="30 simulations were appended since .* without resume"):
        trainer.train(max_num_epochs=2, resume_training=True)
    assert len(trainer.train_indices) + len(trainer.val_indices) == len(theta)


# Options of train


def test_calibration_kernel_silences_what_it_zeroes(simulations):
    # Of sbi's flow and without a proxy: the linear start is fitted to all simulations, as sbi's
    # z-scoring is, before a kernel is heard of.
    theta, x = simulations
    zeroed = (x[:, 0] <= 0).nonzero().flatten()
    scrambled = theta.clone()
    scrambled[zeroed] = theta[zeroed.roll(5)]
    outcomes = {}
    for kernel in (None, lambda x: (x[:, 0] > 0).float()):
        for name, parameters in (("clean", theta), ("scrambled", scrambled)):
            trainer = make("zuko_nsf", objective="ml")
            trainer.append_simulations(parameters, x).train(
                max_num_epochs=5,
                learning_rate=0.02,
                calibration_kernel=kernel,
                validation_data=(theta[:40], x[:40]),
            )
            outcomes[kernel is None, name] = torch.tensor(trainer.summary["training_loss"])
    # z-scoring sums the same rows in another order: float32 rounding, grown over a few steps.
    torch.testing.assert_close(
        outcomes[False, "clean"], outcomes[False, "scrambled"], atol=1e-3, rtol=0
    )
    # Without the kernel the scrambled half is heard.
    assert (outcomes[True, "clean"] - outcomes[True, "scrambled"]).abs().max() > 0.1


def test_clip_max_norm(simulations):
    losses = {}
    for norm in (None, 1e9, 1e-3):
        trainer = make()
        trainer.append_simulations(*simulations)
        trainer.train(max_num_epochs=3, clip_max_norm=norm, training_batch_size=20)
        losses[norm] = trainer.summary["training_loss"]
    assert losses[None] == losses[1e9]
    assert losses[None] != losses[1e-3]


def test_validation_data_takes_the_place_of_the_split(simulations):
    theta, x = simulations
    held_out = (theta[60:], x[60:])
    trainer = make()
    trainer.append_simulations(theta[:60], x[:60]).train(max_num_epochs=1, validation_data=held_out)
    assert len(trainer.train_indices) == 60
    assert len(trainer.val_indices) == 0
    # Resuming keeps them.
    trainer.train(max_num_epochs=2, resume_training=True)
    assert trainer._validation_data is not None
    estimator = trainer._neural_net
    found = -estimator.flow.log_prob(held_out[0][None], held_out[1]).mean().item()
    # The same numbers summed in float32.
    assert found == pytest.approx(trainer.summary["best_validation_loss"][-1], abs=1e-5)


def test_looks_at_the_first_held_out_rows_see_all_of_an_ordered_file(simulations, monkeypatch):
    theta, x = simulations
    order = theta[:, 0].argsort()
    seen = []
    monkeypatch.setattr(
        joint_trainer, "begin", lambda training, data, held_out, **_: seen.append(held_out)
    )
    monkeypatch.setattr(joint_trainer, "run", lambda *args, **_: None)
    trainer = make().append_simulations(theta, x)
    with pytest.warns(UserWarning, match="Maximum number of epochs"):
        trainer.train(max_num_epochs=1, validation_data=(theta[order], x[order]))
    first, _ = seen[0].head(len(theta) // 2, "cpu")
    # Of the lower half none would lie above the median; as many as not do so in a random half.
    assert 0.3 < (first[:, 0] > theta[:, 0].median()).float().mean() < 0.7


def test_dataloader_kwargs_reach_the_loaders(simulations):
    sizes = []

    def collate(rows):
        sizes.append(len(rows))
        return torch.utils.data.default_collate(rows)

    trainer = make()
    trainer.append_simulations(*simulations)
    trainer.train(max_num_epochs=1, dataloader_kwargs={"collate_fn": collate, "batch_size": 8})
    # 72 rows to train on and 8 held out.
    assert set(sizes) == {8}
    assert len(sizes) >= 9 + 1
    assert len(trainer.summary["validation_loss"]) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int32, "numpy"])
def test_other_types_of_numbers_work(dtype):
    prior = BoxUniform(torch.zeros(2), torch.full((2,), 10.0))
    theta = prior.sample((60,)).floor().clamp(0, 9)
    x = (theta + 3 * torch.randn(60, 2)).round()
    reference = make(prior=prior)
    reference.append_simulations(theta, x).train(max_num_epochs=1)
    cast = (lambda t: t.double().numpy()) if dtype == "numpy" else (lambda t: t.to(dtype))
    trainer = make(prior=prior)
    trainer.append_simulations(cast(theta), cast(x)).train(max_num_epochs=1)
    assert torch.equal(weights_of(reference), weights_of(trainer))


@pytest.mark.filterwarnings(NO_SUPPORT)
@pytest.mark.filterwarnings(NO_MEAN)
@pytest.mark.parametrize("estimator", ["mdn", "coupling_nsf"])
def test_without_prior(estimator, simulations):
    trainer = make(estimator, prior=None)
    found = trainer.append_simulations(*simulations).train(max_num_epochs=1)
    assert found.proxy.log_prob_unnormalized(torch.full((1, 2), 9.0), torch.zeros(1, 2)).isfinite()
    posterior = trainer.build_posterior()
    sample = posterior.sample((5,), x=torch.zeros(2), show_progress_bars=False)
    assert sample.shape == (5, 2)


@pytest.mark.filterwarnings(NO_SUPPORT, NO_MEAN)
def test_without_prior_a_likelihood_simulates_nothing(simulations):
    """What it could draw parameters from is no prior of anybody's."""
    trainer = make("coupling_nsf", prior=None, proxy=proxy_nn("likelihood"))
    trainer.append_simulations(*simulations).train(max_num_epochs=1)
    assert isinstance(trainer._neural_net.proxy.network, LikelihoodEnergy)
    assert trainer._training.draws.simulated == 0


def test_resuming_continues_bit_for_bit_within_a_trial(simulations, monkeypatch):
    # At a rate at which nothing moves patience would last for ten times as long.
    monkeypatch.setattr("sbi_jeffreys.training.patience._SLOWEST", 1.0)
    # Nor would it follow a proxy that learns at the rate the flow does not.
    monkeypatch.setattr("sbi_jeffreys.training.patience._FAR_AHEAD", float("inf"))
    # 80 simulations are 7 batches of 10: patience begins after 28 epochs.
    arguments = {"training_batch_size": 10, "stop_after_epochs": 8, "learning_rate": 1e-6}
    whole = make().append_simulations(*simulations)
    whole.train(max_num_epochs=33, **arguments)
    assert whole._training.patience.before is not None
    parts = make().append_simulations(*simulations)
    parts.train(max_num_epochs=32, **arguments)
    parts.train(max_num_epochs=33, resume_training=True, **arguments)
    assert torch.equal(weights_of(whole), weights_of(parts))
    assert whole._training.patience == parts._training.patience


class Falsy(torch.nn.Sequential):
    """A kernel without layers, which has length zero."""

    def forward(self, x):
        return (x[:, 0] < 0).float()


def test_a_kernel_that_is_false_is_a_kernel(simulations):
    weights = []
    for kernel in (Falsy(), Falsy().forward, None):
        trainer = make().append_simulations(*simulations)
        trainer.train(max_num_epochs=1, calibration_kernel=kernel)
        weights.append(weights_of(trainer))
    assert torch.equal(*weights[:2])
    assert not torch.equal(*weights[1:])


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (2**64, ValueError, "seed must lie in"),
        (-(2**63) - 1, ValueError, "seed must lie in"),
        (True, TypeError, "seed must be an integer or None, got True"),
    ],
)
def test_seeds_that_torch_does_not_take(seed, error, message):
    with pytest.raises(error, match=message):
        make(seed=seed)
