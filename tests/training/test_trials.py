"""Trials of a lower price of D2, and what is left behind where one has failed."""

import pytest
from trainings import equal, make, snapshot

from sbi_jeffreys.costs import HuberCost, LinearCost
from sbi_jeffreys.duals import ResilientDual


def test_a_failed_trial_puts_the_best_weights_back_and_learns_more_slowly():
    # Without the watch over the proxy, which lowers the proxy's rate for reasons of its own.
    training, data, held_out = make(stop_after_epochs=2, proxy_plateau=False)
    training.start(held_out)
    training.advance(data, held_out)
    rates = [optimizer.lr for optimizer in training.optimizers]
    # Whatever comes: better than what is forgotten when patience begins, and than all after.
    best = training.best_weights = training.first_weights = snapshot(training.estimator)
    training.patience.best = training.patience.start = training.patience.mark = -100.0
    while training.patience.failed is None:
        # Nor is anything progress beside that.
        training.patience.mark = -100.0
        stiffness = training.patience.stiffness
        record = training.advance(data, held_out)
    assert stiffness == pytest.approx(0.1)
    # The dual has seen a tenth of D2; the record has the slack of D2 itself.
    assert record["slack_reverse"] == pytest.approx(training.dual.slacks[1].item() / stiffness)
    assert record["slack_forward"] == training.dual.slacks[0].item()
    assert training.patience.stiffness == 1.0
    assert equal(best, snapshot(training.estimator))
    with training.average.in_place():
        assert equal(best, snapshot(training.estimator))
    for optimizer, rate in zip(training.optimizers, rates, strict=True):
        assert optimizer.lr == pytest.approx(0.5 * rate)
    while not training.converged:
        training.advance(data, held_out)
    # Nothing was gained since, so that there was no other trial.
    assert (training.patience.failed, training.patience.stiffness) == (-100.0, 1.0)


@pytest.mark.parametrize(
    ("reverse", "stiffness"), [(0.05, 0.1), (1.0, 0.1), (2.0, 0.01), (100.0, 0.001), (1e5, 0.001)]
)
def test_a_trial_lowers_the_price_until_the_multiplier_moves(reverse, stiffness):
    # At its bound, 4, the slope of this price is that of a tenth of it from D2 = 1.33 on.
    training, _, _ = make(weights=ResilientDual((LinearCost(), HuberCost(30.0, 4.0), LinearCost())))
    training.patience.before = 1.0
    training.patience.lower()
    before = training.dual
    training._lower_enough(reverse)
    assert training.patience.stiffness == pytest.approx(stiffness)
    assert training.patience.before == 1.0
    assert training.dual is before


def test_a_trial_that_has_just_begun_moves_the_multiplier(monkeypatch):
    training, data, held_out = make(
        weights=ResilientDual((LinearCost(), HuberCost(30.0, 4.0), LinearCost()))
    )
    training.start(held_out)
    training.patience.mark, training.patience.stall = -100.0, training.patience.limit
    epoch = {"training_loss": 0.0, "divergence_reverse": 100.0}
    monkeypatch.setattr(training, "run_epoch", lambda data: dict(epoch))
    training.steps = 1
    training.advance(data, held_out)
    assert training.patience.before == 1.0
    assert training.stiffness == pytest.approx(0.001)


@pytest.mark.parametrize("weights", ["fixed", "ml", ResilientDual([LinearCost()] * 3)], ids=str)
def test_weights_that_do_not_move_are_given_no_trial(weights):
    training, _, _ = make(weights=weights)
    assert not training.patience.trials


def test_a_run_that_goes_back_forgets_samples_and_looks():
    training, data, held_out = make()
    training.start(held_out)
    training.advance(data, held_out)
    training.queue.sets, training._looks.plateau.looks = ["of the abandoned flow"], 3
    training._go_back()
    assert training.queue.sets == []
    assert (training._looks.plateau.looks, training._looks.plateau.since) == (0, training.steps)
