"""Trouble while training leaves a usable estimator, and a way on."""

import copy
import linecache

import pytest
import torch
from trainers import THETA, X, make, usable

from sbi_jeffreys.quiet import QuietTracker
from sbi_jeffreys.training import Training


class Meddling(QuietTracker):
    """Calls back after an epoch."""

    def __init__(self, at: int, action) -> None:
        self.at, self.action = at, action

    def log_metrics(self, metrics, step=None):
        if step == self.at:
            self.action()


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("estimator", ["coupling_nsf", "mdn", "maf", "nsf", "zuko_maf"])
def test_divergence_restores_the_best_weights(estimator):
    def poison():
        with torch.no_grad():
            next(trainer._neural_net.flow.parameters()).fill_(torch.nan)

    trainer = make(estimator, tracker=Meddling(1, poison)).append_simulations(THETA, X)
    with pytest.warns(RuntimeWarning, match=r"diverged in epoch 3.*best epoch.*Lower learning_rat"):
        trainer.train(max_num_epochs=9)
    assert trainer.summary["epochs_trained"] == [2]
    assert usable(trainer)
    held_out = trainer.val_indices
    found = -trainer._neural_net.log_prob(THETA[held_out][None], X[held_out]).mean().item()
    # The same numbers summed in float32.
    assert found == pytest.approx(trainer.summary["best_validation_loss"][0], abs=1e-5)
    # And it can go on, at the lower rate that the warning recommends.
    trainer.train(max_num_epochs=4, resume_training=True, learning_rate=1e-4)
    assert trainer.summary["epochs_trained"] == [2, 2]
    assert trainer.summary["learning_rate_flow"][-1] == 1e-4
    assert usable(trainer)


def test_divergence_of_the_objective():
    def kernel(x):
        training = torch.is_grad_enabled()
        broken = training and len(trainer.summary["training_loss"]) == 2
        return torch.full((len(x),), torch.nan if broken else 1.0)

    trainer = make().append_simulations(THETA, X)
    with pytest.warns(RuntimeWarning, match=r"diverged in epoch 3.*best epoch") as caught:
        trainer.train(max_num_epochs=9, calibration_kernel=kernel)
    # It points at the line above.
    line = linecache.getline(caught[0].filename, caught[0].lineno)
    assert line.strip() == "trainer.train(max_num_epochs=9, calibration_kernel=kernel)"
    assert trainer.summary["epochs_trained"] == [2]
    assert usable(trainer)


def test_errors_that_are_no_divergence_get_through():
    def fail():
        raise ValueError("a bug of the tracker")

    trainer = make(tracker=Meddling(0, fail)).append_simulations(THETA, X)
    with pytest.raises(ValueError, match="a bug of the tracker"):
        trainer.train(max_num_epochs=3)
    assert usable(trainer)


def test_interruption_keeps_the_best_weights_and_can_be_resumed():
    def interrupt():
        raise KeyboardInterrupt

    trainer = make(tracker=Meddling(2, interrupt)).append_simulations(THETA, X)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(max_num_epochs=9)
    assert trainer.summary["epochs_trained"] == [3]
    assert not trainer._neural_net.training
    assert usable(trainer)
    # All count, as in sbi.
    trainer.train(max_num_epochs=5, resume_training=True)
    assert trainer.summary["epochs_trained"] == [3, 2]
    # As if nothing had happened.
    whole = make().append_simulations(THETA, X)
    whole.train(max_num_epochs=5)
    assert whole.summary["validation_loss"] == trainer.summary["validation_loss"]


@pytest.mark.parametrize("name", ["_build_proxy", "_run_training_loop"])
def test_interruption_before_the_first_epoch_leaves_nothing_in_the_way(name, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    trainer = make().append_simulations(THETA, X)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(max_num_epochs=1)
    trainer.train(max_num_epochs=1)
    assert usable(trainer)
    # What there was before is still there.
    before = trainer._neural_net
    with monkeypatch.context() as patch:
        patch.setattr(trainer, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(retrain_from_scratch=True, force_first_round_loss=True)
    if name == "_build_proxy":
        assert trainer._neural_net is before
    trainer.train(max_num_epochs=1, retrain_from_scratch=True, force_first_round_loss=True)
    assert usable(trainer)


@pytest.mark.parametrize("before", [True, False], ids=["of another training", "of the first"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_trouble_in_the_first_look_changes_nothing(before, error, monkeypatch):
    def fail(*args):
        raise error

    trainer = make("coupling_nsf").append_simulations(THETA, X)
    if before:
        trainer.train(max_num_epochs=1)
    estimator, split = trainer._neural_net, getattr(trainer, "val_indices", None)
    summary = copy.deepcopy(trainer.summary)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "start", fail)
        with pytest.raises(error):
            trainer.train(
                max_num_epochs=1, retrain_from_scratch=before, force_first_round_loss=True
            )
    assert trainer.summary == summary
    if before:
        assert trainer._neural_net is estimator
        assert torch.equal(trainer.val_indices, split)
        trainer.train(max_num_epochs=2, resume_training=True)
    else:
        trainer.train(max_num_epochs=2)
    assert usable(trainer)


def test_interruption_at_the_very_end_keeps_the_best_weights(monkeypatch):
    trainer = make("coupling_nsf").append_simulations(THETA, X.square())

    settle = Training.settle

    def interrupt(*args):
        raise KeyboardInterrupt

    def interrupted(training, held_out):
        with monkeypatch.context() as patch:
            patch.setattr(Training, "losses", interrupt)
            return settle(training, held_out)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(max_num_epochs=3)
    training = trainer._training
    for name, value in trainer._neural_net.state_dict().items():
        assert torch.equal(value, training.best_weights[name])
    assert trainer.summary["epochs_trained"] == [3]
    assert training.best_weights is not training.first_weights
