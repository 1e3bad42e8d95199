"""Trouble while training leaves a usable estimator, and a way on."""

import copy
import linecache
import pickle

import pytest
import torch
from trainers import THETA, X, make, usable, weights_of

from sbi_jeffreys.training.training import Training
from sbi_jeffreys.utils.quiet import QuietTracker


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


def test_an_interruption_among_weights_that_are_no_numbers_is_resumed_from_the_best():
    """A GPU may have descended where it was not known yet that there was no ground."""

    def interrupt():
        with torch.no_grad():
            for parameter in trainer._training.estimator.parameters():
                parameter.fill_(torch.nan)
        raise KeyboardInterrupt

    trainer = make(tracker=Meddling(2, interrupt)).append_simulations(THETA, X)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(max_num_epochs=9)
    assert usable(trainer)
    trainer.train(max_num_epochs=5, resume_training=True)
    assert torch.tensor(trainer.summary["validation_loss"]).isfinite().all()
    assert usable(trainer)


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


WHERE = {
    "the build": ("_with_proxy", None),
    "the choice of a form": ("_choose_form", None),
    "the first look": (None, (Training, "start")),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", WHERE)
def test_trouble_before_the_first_step_changes_nothing(where, error, monkeypatch):
    """Also the split, another fraction and other rows notwithstanding: the last one resumes."""

    def fail(*args):
        raise error

    def make_and_train():
        trainer = make("coupling_nsf").append_simulations(THETA, X)
        trainer.train(max_num_epochs=2, validation_data=(THETA[:7], X[:7]))
        return trainer

    trainer, undisturbed = make_and_train(), make_and_train()
    estimator, summary = trainer._neural_net, copy.deepcopy(trainer.summary)
    own, other = WHERE[where]
    retrain = {"retrain_from_scratch": True, "force_first_round_loss": True}
    with monkeypatch.context() as patch:
        patch.setattr(*(other or (trainer, own)), fail)
        with pytest.raises(error):
            trainer.train(max_num_epochs=1, validation_fraction=0.3, **retrain)
    assert trainer._neural_net is estimator
    assert not estimator.training
    assert trainer.summary == summary
    # What sbi refuses changes nothing, either.
    with pytest.raises(ValueError, match="already been trained"):
        trainer.train(max_num_epochs=1)
    for each in (trainer, undisturbed):
        each.train(max_num_epochs=4, resume_training=True)
    assert torch.equal(weights_of(trainer), weights_of(undisturbed))
    assert trainer.summary["validation_loss"] == undisturbed.summary["validation_loss"]


@pytest.mark.parametrize("where", WHERE)
def test_trouble_before_the_first_step_of_all_leaves_nothing(where, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    trainer = make("coupling_nsf").append_simulations(THETA, X)
    own, other = WHERE[where]
    with monkeypatch.context() as patch:
        patch.setattr(*(other or (trainer, own)), fail)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(max_num_epochs=1)
    assert trainer._neural_net is None
    trainer.train(max_num_epochs=1, validation_fraction=0.3)
    assert len(trainer.val_indices) == 18
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


class Copying(QuietTracker):
    """Tracker that keeps a copy of its trainer after some epochs."""

    def __init__(self, how, steps):
        self.how, self.steps, self.trainer, self.copies = how, steps, None, {}

    def log_metrics(self, metrics, step=None):
        if self.trainer is not None and step in self.steps:
            trainer, self.trainer = self.trainer, None
            self.copies[step] = self.how(trainer)
            self.trainer = trainer


# sbi's, of what a pickle does not hold.
@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["copy", "pickle"]
)
def test_copies_that_a_tracker_keeps_go_on_from_where_they_were_made(how):
    """In a first run, and in one that was resumed."""
    tracker = Copying(how, (2, 7))
    trainer = tracker.trainer = make("coupling_nsf", tracker=tracker)
    trainer.append_simulations(THETA, X).train(max_num_epochs=5)
    trainer.train(max_num_epochs=10, resume_training=True)
    expected = weights_of(trainer)
    first, second = tracker.copies[2], tracker.copies[7]
    assert (first._training.epoch, second._training.epoch) == (3, 8)
    first.train(max_num_epochs=5, resume_training=True)
    for each in (first, second):
        each.train(max_num_epochs=10, resume_training=True)
        assert torch.equal(weights_of(each), expected)
