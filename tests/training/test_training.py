"""The training loop: it sees every row, keeps the best, and says when it has diverged."""

import math

import pytest
import torch
from recorder import go_ahead
from trainings import equal, make, simulate_bent, snapshot

from sbi_jeffreys.training.batches import ones
from sbi_jeffreys.training.descent import TrainingDiverged
from sbi_jeffreys.training.record import EPOCH_KEYS, append_epoch, new_record

# nflows, on which sbi's "nsf" is built, calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")


@pytest.mark.parametrize("weights", ["dual", "dual_quadratic", "fixed", "ml"])
def test_every_number_of_an_epoch_fits_the_record(weights):
    training, data, held_out = make(weights=weights)
    training.start(held_out)
    epoch = training.advance(data, held_out)
    record = new_record()
    append_epoch(record, epoch)
    if weights.startswith("dual"):
        assert set(epoch) == set(EPOCH_KEYS)
        assert all(math.isfinite(value) for value in epoch.values())
    assert epoch["learning_rate_flow"] == 5e-3
    assert epoch["multiplier_forward"] == training.dual.multipliers[0]
    assert training.epoch == 1


def test_judge_keeps_the_best_and_restore_best():
    training, data, _ = make()
    estimator = training.estimator
    training.judge(2.0, 2.0)
    training.run_epoch(data)
    training.judge(1.0, 1.0)
    best = snapshot(estimator)
    for loss in (1.0, 3.0, math.nan, math.inf):
        training.run_epoch(data)
        training.judge(loss, loss)
    assert training.best_loss == 1.0
    assert not equal(best, snapshot(estimator))
    training.restore_best()
    assert equal(best, snapshot(estimator))
    # What is remembered is a copy: training on leaves it as it is.
    training.run_epoch(data)
    training.restore_best()
    assert equal(best, snapshot(estimator))


@pytest.mark.parametrize("weights", ["dual", "ml"])
def test_weights_that_an_early_look_liked_by_chance_are_forgotten_where_prices_are_tried(weights):
    training, data, held_out = make(weights=weights)
    training.start(held_out)
    start, first_loss = snapshot(training.estimator), training.best_loss
    training.run_epoch(data)
    lucky = snapshot(training.estimator)
    training.judge(-100.0, -100.0)
    assert equal(training.best_weights, lucky)
    # A run that ends here keeps them; one that goes on past its first steps does not.
    training.run_epoch(data)
    training.steps = 1000
    training.judge(1e3, 1e3)
    if weights == "ml":
        assert equal(training.best_weights, lucky)
        return
    assert equal(training.best_weights, start)
    assert training.best_loss == first_loss
    training.run_epoch(data)
    training.judge(-1.0, -1.0)
    assert equal(training.best_weights, snapshot(training.estimator))


@pytest.mark.parametrize(("factor", "pace"), [(3.0, 1.0), (1.0, 1.0), (0.2, 0.2), (1e-9, 0.1)])
def test_lower_rates_have_more_patience(factor, pace):
    training, _, _ = make(learning_rate=4e-3 * factor)
    assert training.patience.pace == pytest.approx(pace)
    assert training._looks.plateau.pace == 1.0
    training, _, _ = make(proxy_learning_rate=5e-3 * factor)
    assert training.patience.pace == 1.0
    assert training._looks.plateau.pace == pytest.approx(pace)


def test_outliers_do_not_decide_what_is_best():
    training, data, held_out = make()
    training.start(held_out)
    first = training.patience.best
    training.run_epoch(data)
    best = snapshot(training.estimator)
    # One row is worse by a hundred nats, the others are better.
    training.judge(training.best_loss + 1.0, first - 0.5)
    assert equal(best, training.best_weights)
    assert training.patience.best == first - 0.5
    epoch = training.advance(data, held_out)
    assert epoch["validation_loss_bounded"] <= epoch["validation_loss"]


def test_a_proxy_that_gets_worse_is_put_back_and_learns_more_slowly():
    training, data, held_out = make(proxy_learning_rate=1e-3, stop_after_epochs=1000)
    proxy = training.estimator.proxy
    training.advance(data, held_out)
    rate = training.optimizers[1].lr
    # From here on every look is worse than the first.
    training._looks.plateau.best -= 1e6
    best = snapshot(proxy)
    training._looks.plateau.weights = best
    for _ in range(200):
        training.advance(data, held_out)
        if training.optimizers[1].lr < rate:
            break
    assert training.optimizers[1].lr == pytest.approx(0.3 * rate)
    assert equal(best, snapshot(proxy))
    # What is validated and kept begins there too.
    with training.average.in_place():
        assert equal(best, snapshot(proxy))


def test_without_a_plateau_the_proxy_goes_on():
    training, data, held_out = make(proxy_plateau=False)
    for _ in range(40):
        training.advance(data, held_out)
    assert not training._looks.plateau.weights
    assert training.optimizers[1].lr == training.settings.proxy_learning_rate


def test_restoring_without_a_best_changes_nothing():
    training, _, _ = make()
    before = snapshot(training.estimator)
    training.restore_best()
    assert equal(before, snapshot(training.estimator))


@pytest.mark.parametrize(
    ("gains", "best_is_kept"),
    [
        # Mean 0.5 of four rows, standard error 0.65, 0.41 and 0.23, which counts twice.
        ([2.0, 1.0, -1.0, 0.0], False),
        ([1.0, 1.0, -0.7, 0.7], False),
        ([1.0, 0.7, -0.1, 0.4], True),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([0.5], False),
        ([math.inf, -1.0, 0.0, 0.0], True),
    ],
)
def test_the_first_weights_stay_unless_beaten_by_a_standard_error(gains, best_is_kept, monkeypatch):
    training, data, held_out = make()
    training.start(held_out)
    first = snapshot(training.estimator)
    training.run_epoch(data)
    training.judge(-100.0, -100.0)
    best = snapshot(training.estimator)
    training.run_epoch(data)
    # The first weights are looked at first.
    losses = iter((each, each) for each in (torch.tensor(gains), torch.zeros(len(gains))))
    monkeypatch.setattr(training, "losses", lambda _: next(losses))
    loss = training.settle(held_out)
    assert equal(best if best_is_kept else first, snapshot(training.estimator))
    assert loss == (0.0 if best_is_kept else pytest.approx(sum(gains) / len(gains)))


def test_one_far_row_does_not_decide_what_stays(monkeypatch):
    """All rows gain a nat but one, which loses a thousand, and is bounded to no loss."""
    training, data, held_out = make()
    training.start(held_out)
    training.run_epoch(data)
    training.judge(-100.0, -100.0)
    best = snapshot(training.estimator)
    gains = torch.linspace(0.9, 1.1, 20)
    far = gains.clone()
    far[3] = -1000.0
    nothing = torch.zeros(20)
    losses = iter(((far, gains), (nothing, nothing)))
    monkeypatch.setattr(training, "losses", lambda _: next(losses))
    assert training.settle(held_out) == 0.0
    assert equal(best, snapshot(training.estimator))


def test_without_a_simple_start_the_best_is_kept():
    training, data, held_out = make()
    training.simple_start = False
    training.start(held_out)
    training.run_epoch(data)
    training.judge(-100.0, -100.0)
    best = snapshot(training.estimator)
    assert training.settle(held_out) == -100.0
    assert equal(best, snapshot(training.estimator))


def test_the_loss_that_is_returned_is_that_of_the_weights():
    training, data, held_out = make(300, simulator=simulate_bent, training_batch_size=50)
    training.start(held_out)
    first = training.best_loss
    for _ in range(10):
        training.advance(data, held_out)
    # The bend is learnt beyond doubt.
    assert training.settle(held_out) == pytest.approx(training.best_loss, abs=1e-5)
    assert training.best_loss < first - 0.3
    assert equal(training.best_weights, snapshot(training.estimator))


def test_later_rounds_keep_the_best():
    training, data, held_out = make()
    training.start(held_out)
    training.run_epoch(data)
    training.judge(-100.0, -100.0)
    best = snapshot(training.estimator)
    training.go_on(training.settings, ones, lambda theta, x, masks: theta.sum(dim=1))
    assert training.settle(held_out) == -100.0
    assert equal(best, snapshot(training.estimator))


def test_what_was_not_drawn_from_the_prior_stays_so_when_a_training_goes_on():
    training, _, _ = make(proxy="likelihood", from_prior=False)
    training.go_on(training.settings, ones, None)
    assert not training.from_prior
    assert training.draws.simulated == 0


def test_beginning_anew_remembers_how_good_the_best_was():
    training, data, held_out = make()
    training.start(held_out)
    training.judge(-100.0, -100.0)
    best = training.best_weights
    again = training.anew(training.settings)
    again.start(held_out)
    again.advance(data, held_out)
    assert again.best_loss == -100.0
    assert equal(best, again.best_weights)


def test_beginning_anew_keeps_what_held_out_data_have_said():
    """Without it curved prices would see data terms of zero, and their multipliers die."""
    training, data, held_out = make(weights="dual_quadratic")
    training.start(held_out)
    training.advance(data, held_out)
    seen = training._divergences(torch.tensor(0.5))
    assert (seen[[0, 2]] > 0).all()
    assert torch.equal(training.anew(training.settings)._divergences(torch.tensor(0.5)), seen)


def test_beginning_anew_keeps_the_last_estimate_of_reverse():
    """Its first step may be one of the flow alone, which estimates none."""
    training, data, held_out = make(proxy="likelihood", common=2)
    training.start(held_out)
    (batch,) = list(data.batches(50, "cpu", shuffle=True))
    training.step(*batch)
    again = training.anew(training.settings)
    assert again.steps == 1
    assert again.step(*batch)[1] == training._reverse > 0


def test_start_makes_the_first_weights_the_best_and_does_so_once():
    training, _, held_out = make()
    before = snapshot(training.estimator)
    training.start(held_out)
    assert equal(before, training.best_weights)
    assert math.isfinite(training.best_loss)
    training.best_loss = -100.0
    training.start(held_out)
    assert training.best_loss == -100.0


def test_best_is_what_held_out_data_say():
    training, data, held_out = make(learning_rate=2e-2)
    training.start(held_out)
    losses = [training.advance(data, held_out)["validation_loss"] for _ in range(12)]
    assert training.best_loss <= min(losses)
    training.restore_best()
    assert training.validate(held_out)["validation_loss"] == pytest.approx(
        training.best_loss, abs=1e-5
    )


@pytest.mark.parametrize("flow", ["ours", "zuko_nsf", "maf", "nsf", "mdn", "made"])
@pytest.mark.parametrize("weights", ["dual", "ml"])
@pytest.mark.parametrize("ahead", [False, True])
def test_diverged(flow, weights, ahead, monkeypatch):
    """An infinite objective in one batch of many: the error is ours, whatever the flow."""
    calls = []
    if ahead:
        go_ahead(monkeypatch)

    def kernel(x):
        calls.append(len(x))
        return x.new_full((len(x),), math.inf if len(calls) == 2 else 1.0)

    training, data, _ = make(weights=weights, flow=flow, kernel=kernel)
    training.best_weights = snapshot(training.estimator)
    before = snapshot(training.estimator)
    with pytest.raises(TrainingDiverged, match="objective"):
        training.run_epoch(data)
    training.restore_best()
    assert equal(before, snapshot(training.estimator))
    assert all(value.isfinite().all() for value in training.dual.multipliers)


@pytest.mark.parametrize("weights", ["dual", "ml"])
@pytest.mark.parametrize("ahead", [False, True])
def test_training_goes_on_after_a_divergence(weights, ahead, monkeypatch):
    """What made one batch infinite leaves no trace in optimizers, averages and multipliers.

    A step that went ahead has left one in the former two.
    """
    bad = []
    if ahead:
        go_ahead(monkeypatch)

    def kernel(x):
        return x.new_full((len(x),), math.inf if bad else 1.0)

    training, data, held_out = make(weights=weights, kernel=kernel)
    training.start(held_out)
    training.advance(data, held_out)
    bad.append(True)
    with pytest.raises(TrainingDiverged):
        training.run_epoch(data)
    bad.clear()
    training.restore_best()
    if ahead:
        # As the trainer does, which then begins anew.
        training = training.anew(training.settings)
    before = snapshot(training.estimator.flow)
    epoch = training.advance(data, held_out)
    assert math.isfinite(epoch["validation_loss"])
    after = snapshot(training.estimator.flow)
    assert all(value.isfinite().all() for value in after.values())
    assert not equal(before, after)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_diverged_on_held_out_data(bad):
    training, data, held_out = make(kernel=lambda x: torch.where(x[:, 0] > 90, bad, 1.0))
    training.start(held_out)
    held_out.x[3] = 99.0
    with pytest.raises(TrainingDiverged, match="held-out"):
        training.advance(data, held_out)
    assert math.isfinite(training.best_loss)


def test_validation_repeats_itself():
    training, _, held_out = make()
    first, second = training.validate(held_out), training.validate(held_out)
    assert first["validation_loss"] == second["validation_loss"]
    assert not training.estimator.training


def test_validation_loss_is_the_flows_cross_entropy_under_the_kernel():
    training, _, held_out = make(kernel=lambda x: x[:, 0].abs())
    estimator = training.estimator.eval()
    expected = (held_out.x[:, 0].abs() * estimator.loss(held_out.theta, held_out.x)).mean()
    assert training.validate(held_out)["validation_loss"] == pytest.approx(
        expected.item(), abs=1e-5
    )


def test_forward_loss_hook_replaces_training_and_validation_loss():
    def hook(theta, x, masks):
        assert masks.shape == (len(theta), 1)
        return training.estimator.loss(theta, x) + 100

    training, data, held_out = make(forward_loss=hook)
    training.start(held_out)
    epoch = training.advance(data, held_out)
    assert epoch["training_loss"] > 50
    assert epoch["validation_loss"] > 50


def test_observe_keeps_data_divergences_above_the_margin():
    training, _, _ = make()
    for flow, proxy in [(3.0, 2.0), (1.0, 2.5), (1.5, 0.5), (-1.0, math.nan), (4.0, 4.0)]:
        looks = {"validation_loss": flow, "validation_loss_proxy": proxy}
        found = training.observe(looks | {"effective_sample_size": 0.5})
        assert found["divergence_forward"] > 0
        assert found["divergence_proxy"] > 0 or math.isnan(proxy)
    # The lowest of all was -1.
    assert found["divergence_forward"] == pytest.approx(found["divergence_proxy"])
    assert found["divergence_forward"] > 5


def test_a_proxy_that_the_flow_does_not_cover_has_no_say_in_the_entropy():
    training, *_ = make()
    looks = {"validation_loss": 1.0, "validation_loss_proxy": -10.0}
    uncovered = training.observe(looks | {"effective_sample_size": 0.07})
    assert training.entropy == pytest.approx(0.9)
    assert uncovered["divergence_forward"] == pytest.approx(0.1)
    assert math.isnan(uncovered["divergence_proxy"])
    training.observe(looks | {"effective_sample_size": 0.7})
    assert training.entropy == pytest.approx(-10.1)


def test_what_is_looked_at_and_kept_is_the_running_mean():
    training, data, held_out = make(learning_rate=2e-2)
    training.start(held_out)
    for _ in range(4):  # the newest weights alone are the mean of the first ten steps
        training.patience.best = float("inf")
        record = training.advance(data, held_out)
    with training.average.in_place():
        mean = training.validate(held_out)["validation_loss"]
        assert equal(training.best_weights, snapshot(training.estimator))
    assert record["validation_loss"] == pytest.approx(mean, abs=1e-6)
    assert training.validate(held_out)["validation_loss"] != pytest.approx(mean, abs=1e-6)
