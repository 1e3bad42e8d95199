"""`JeffreysDensity`: closed forms, what training leaves behind, and bad input."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from torch.distributions import MultivariateNormal

import sbi_jeffreys
from sbi_jeffreys import density as module
from sbi_jeffreys import partition
from sbi_jeffreys.costs import HuberCost, LinearCost
from sbi_jeffreys.density import STEPS_PER_EPOCH, TEST_KEYS, JeffreysDensity, density_dual
from sbi_jeffreys.draws import Draws
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.objective import Limits
from sbi_jeffreys.training.descent import TrainingDiverged
from sbi_jeffreys.training.record import EPOCH_KEYS

FEW = Draws(flow=4, base=8, fraction=0.25, jitter=0.0)


def normal(dim=2):
    covariance = torch.eye(dim) + 0.5 * torch.ones(dim, dim)
    return MultivariateNormal(torch.arange(dim).float(), covariance)


def draw(num, dim=2, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return normal(dim).sample((num,))


@pytest.fixture(scope="module")
def fitted():
    return JeffreysDensity(seed=0).fit(
        draw(300), draw(100, seed=1), test_data=draw(500, seed=2), max_num_epochs=4
    )


def test_it_is_exported_lazily():
    assert sbi_jeffreys.JeffreysDensity is JeffreysDensity
    assert "JeffreysDensity" in sbi_jeffreys.__all__


def test_a_gaussian_is_found(fitted):
    # 300 samples determine mean and covariance to about 0.01 nats; splines that have only trained
    # for 200 steps add some. A wrong scale or a missing Jacobian costs at least 0.3.
    test = draw(2000, seed=3)
    truth = normal().log_prob(test).mean()
    assert abs(fitted.log_prob(test).mean() - truth) < 0.15
    assert abs(fitted.proxy_log_prob(test).mean() - truth) < 0.15


def test_both_densities_integrate_to_one(fitted):
    # The grid covers seven standard deviations; its spacing is a tenth of one, so that quadrature
    # of a smooth density is exact to 1e-3. log Z is settled to 0.01, and splines have kinks.
    side = torch.linspace(-9, 10, 190)
    points = torch.cartesian_prod(side, side)
    cell = (side[1] - side[0]) ** 2
    assert abs(fitted.log_prob(points).exp().sum() * cell - 1) < 0.01
    assert abs(fitted.proxy_log_prob(points).exp().sum() * cell - 1) < 0.05


def test_samples_are_those_of_the_flow(fitted):
    torch.manual_seed(0)
    samples = fitted.sample(4000)
    assert samples.shape == (4000, 2)
    # Standard error of a mean 0.02, of a covariance 0.04; the fit itself is off by about 0.1.
    assert torch.allclose(samples.mean(dim=0), normal().mean, atol=0.25)
    assert torch.allclose(samples.T.cov(), normal().covariance_matrix, atol=0.4)
    # And their mean log density is minus the entropy of a normal that fits.
    assert abs(fitted.log_prob(samples).mean() + normal().entropy()) < 0.2


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("objective", ["dual", "dual_quadratic", "fixed", "ml"])
def test_any_dimension_and_objective(dim, objective):
    data = draw(60, dim)
    found = JeffreysDensity(objective=objective, draws=FEW, seed=0).fit(data, max_num_epochs=4)
    assert found.log_prob(data).isfinite().all()
    assert found.sample(3).shape == (3, dim)
    assert found.has_proxy == (objective != "ml")
    if found.has_proxy:
        assert found.proxy_log_prob(data).isfinite().all()


def test_record(fitted):
    summary = fitted.summary
    assert set(summary) == {"epochs_trained", "best_validation_loss", *EPOCH_KEYS, *TEST_KEYS}
    epochs = summary["epochs_trained"][0]
    assert epochs == 4
    for key in (*EPOCH_KEYS, *TEST_KEYS):
        assert len(summary[key]) == epochs, key
        assert all(map(math.isfinite, summary[key])), key
    assert summary["best_validation_loss"][0] <= min(summary["validation_loss"])


def test_the_best_weights_are_kept(fitted):
    best = fitted.summary["best_validation_loss"][0]
    assert -fitted.log_prob(draw(100, seed=1)).mean().item() == pytest.approx(best, abs=1e-5)


def test_without_early_stopping_the_last_weights_are_kept():
    held_out, test = draw(50, seed=1), draw(50, seed=2)
    found = JeffreysDensity(objective="ml", seed=0, learning_rate=0.01).fit(
        draw(15), held_out, test_data=test, max_num_epochs=4, stop_after_epochs=None
    )
    losses = found.summary["validation_loss"]
    assert -found.log_prob(held_out).mean().item() == pytest.approx(losses[-1], abs=1e-5)
    assert -found.log_prob(test).mean().item() == pytest.approx(
        found.summary["test_loss"][-1], abs=1e-5
    )


def test_early_stopping():
    found = JeffreysDensity(draws=FEW, seed=0, learning_rate=0.05).fit(
        draw(20), draw(100, seed=1), max_num_epochs=50, stop_after_epochs=2
    )
    assert found.summary["epochs_trained"][0] < 50


def test_an_epoch_has_enough_steps(monkeypatch):
    steps = []
    original = module.Training.begin
    monkeypatch.setattr(module.Training, "begin", lambda *args: steps.append(1) or original(*args))
    for num, batch, expected in ((10, 100, 50), (120, 40, 51), (300, 4, 75)):
        steps.clear()
        JeffreysDensity(objective="ml", batch_size=batch, seed=0).fit(
            draw(num), draw(10, seed=1), max_num_epochs=1
        )
        assert len(steps) == expected >= STEPS_PER_EPOCH


def test_callback_sees_the_epoch_and_changes_nothing():
    seen = []

    def look(density):
        torch.rand(3)
        seen.append((density.summary["test_loss"][-1], -density.log_prob(test).mean().item()))

    test = draw(50, seed=2)
    arguments = {"test_data": test, "max_num_epochs": 2, "stop_after_epochs": None}
    one, other = (JeffreysDensity(draws=FEW, seed=3) for _ in range(2))
    one.fit(draw(50), callback=look, **arguments)
    other.fit(draw(50), **arguments)
    assert len(seen) == 2
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in seen)
    assert torch.equal(one.log_prob(test), other.log_prob(test))


def test_same_seed_same_density_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second, other = (
        JeffreysDensity(draws=FEW, seed=seed).fit(draw(50), max_num_epochs=1) for seed in (5, 5, 6)
    )
    points = draw(20, seed=9)
    assert torch.equal(first.log_prob(points), second.log_prob(points))
    assert first.log_partition == second.log_partition
    assert not torch.equal(first.log_prob(points), other.log_prob(points))
    assert torch.equal(before, torch.get_rng_state())


def test_it_survives_pickling(fitted):
    loaded = pickle.loads(pickle.dumps(fitted))
    points = draw(5)
    assert torch.equal(loaded.log_prob(points), fitted.log_prob(points))
    assert torch.equal(loaded.proxy_log_prob(points), fitted.proxy_log_prob(points))
    fresh = pickle.loads(pickle.dumps(JeffreysDensity(seed=0)))
    assert fresh.fit(points.repeat(3, 1), max_num_epochs=1).log_prob(points).isfinite().all()


def test_numpy_and_double_are_taken():
    found = JeffreysDensity(objective="ml", seed=0).fit(draw(40).double().numpy(), max_num_epochs=1)
    assert found.log_prob(np.zeros((2, 2))).dtype == torch.float32


def test_samples_from_elsewhere_are_taken(monkeypatch):
    samples = torch.randn(60, 2)
    expected = JeffreysDensity(seed=0).fit(samples, max_num_epochs=1).log_prob(samples[:3])
    with elsewhere(monkeypatch) as device:
        there = samples.to(device)
        found = JeffreysDensity(seed=0).fit(there, max_num_epochs=1).log_prob(there[:3])
    assert torch.equal(found, expected)


def test_scales_are_those_of_an_ordered_file_too(monkeypatch):
    samples = draw(1500)
    ordered = samples[samples[:, 0].argsort()]
    density = JeffreysDensity(seed=0, draws=FEW)
    density.fit(ordered, draw(100, seed=1), max_num_epochs=1)
    mean = density.proxy.network.get_buffer("network.mean")[0].item()
    # A thousand of these at random have the mean of all to a standard error of 0.02; that of the
    # first in order is lower by half a standard deviation, 0.6.
    assert mean == pytest.approx(samples[:, 0].mean().item(), abs=0.1)


def test_price_of_d2_is_steep():
    dual = density_dual(stiffness=50.0, bound=7.0)
    assert tuple(dual.costs) == (LinearCost(), HuberCost(50.0, 7.0), LinearCost())
    assert dual.init().multipliers.tolist() == [1.0, 1.0, 1.0]


def test_log_z_is_doubled_until_it_stands(monkeypatch, fitted):
    # Estimates that rise by less and less; pieces of draws are counted.
    values, pieces = iter([0.0, 0.5, 0.35, 0.33]), []

    def measure(estimator, *, num_pieces):
        pieces.append(num_pieces)
        return next(values)

    monkeypatch.setattr(partition, "measure_log_partition", measure)
    found = partition.settled_log_partition(fitted._estimator)
    assert pieces == [1, 1, 2, 4]
    halves = math.log((math.exp(0.0) + math.exp(0.5)) / 2)
    halves = math.log((math.exp(halves) + math.exp(0.35)) / 2)
    assert found == pytest.approx(math.log((math.exp(halves) + math.exp(0.33)) / 2), abs=1e-5)


def test_log_z_that_does_not_settle_warns(monkeypatch, fitted):
    values = iter(range(100))
    monkeypatch.setattr(
        partition, "measure_log_partition", lambda estimator, *, num_pieces: float(next(values))
    )
    with pytest.warns(RuntimeWarning, match="not settled"):
        partition.settled_log_partition(fitted._estimator)


def test_divergence_keeps_the_best_weights(monkeypatch):
    calls = []
    original = module.Training.run_epoch

    def fail(training, data):
        calls.append(1)
        if len(calls) == 2:
            raise TrainingDiverged("the objective became nan.")
        return original(training, data)

    monkeypatch.setattr(module.Training, "run_epoch", fail)
    density = JeffreysDensity(objective="ml", seed=0)
    with pytest.warns(RuntimeWarning, match="diverged in epoch 2"):
        density.fit(draw(50), max_num_epochs=5, stop_after_epochs=None)
    assert density.summary["epochs_trained"] == [1]
    assert density.log_prob(draw(5)).isfinite().all()


GOOD = draw(20)
NAN = torch.where(torch.arange(40).reshape(20, 2) == 6, torch.nan, GOOD)
FLAT = torch.cat((GOOD[:, :1], torch.full((20, 1), 2.5)), dim=1)


@pytest.mark.parametrize(
    ("samples", "arguments", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "samples must be a torch tensor or a numpy array, got list"),
        (GOOD.to(torch.complex64), {}, TypeError, "samples is complex"),
        (GOOD[:, 0], {}, ValueError, r"samples must have shape \(n, d\), got \(20,\)"),
        (GOOD[:0], {}, ValueError, r"got \(0, 2\)"),
        (GOOD[:, :0], {}, ValueError, r"got \(20, 0\)"),
        (NAN, {}, ValueError, r"samples holds NaN or inf in 1 of 20 rows \(the first is row 3\)"),
        (GOOD[:1], {}, ValueError, "1 samples are too few"),
        (GOOD[:2], {}, ValueError, "1 to train on and 1 to validate"),
        (GOOD[:1], {"validation_data": GOOD}, ValueError, "at least 2 samples"),
        (FLAT, {}, ValueError, r"constant in column 1 \(= 2.5\)"),
        (GOOD, {"validation_data": GOOD[:, :1]}, ValueError, "validation_data has 1 columns"),
        (GOOD, {"validation_data": NAN}, ValueError, "validation_data holds NaN"),
        (GOOD, {"test_data": NAN}, ValueError, "test_data holds NaN"),
        (GOOD, {"test_data": GOOD[0]}, ValueError, "test_data must have shape"),
        (GOOD, {"validation_fraction": 1.0}, ValueError, "validation_fraction must lie in"),
        (
            GOOD,
            {"max_num_epochs": 0},
            ValueError,
            "max_num_epochs must be an integer of at least 1",
        ),
        (GOOD, {"stop_after_epochs": 0}, ValueError, "stop_after_epochs must be a positive number"),
    ],
)
def test_bad_samples(samples, arguments, error, message):
    with pytest.raises(error, match=message):
        JeffreysDensity(seed=0).fit(samples, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"objective": "dua"}, ValueError, "Unknown objective 'dua'"),
        ({"objective": 3}, TypeError, "objective must be a name"),
        ({"density_estimator": "nsff"}, ValueError, "Unknown density_estimator"),
        ({"density_estimator": "maf"}, ValueError, "'maf' needs a condition, and a density has no"),
        ({"proxy": "cnn"}, ValueError, "Unknown proxy"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a positive number"),
        ({"proxy_learning_rate": "fast"}, TypeError, "proxy_learning_rate must be a number"),
        ({"proxy_weight_decay": -0.1}, ValueError, "proxy_weight_decay must not be negative"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        JeffreysDensity(**arguments)


def test_what_is_asked_too_early_or_in_vain(fitted):
    density = JeffreysDensity(objective="ml", seed=0)
    for ask in (lambda: density.sample(1), lambda: density.log_prob(GOOD), lambda: density.proxy):
        with pytest.raises(RuntimeError, match="Nothing is trained yet"):
            ask()
    density.fit(GOOD, max_num_epochs=1)
    for ask in (lambda: density.proxy, lambda: density.proxy_log_prob(GOOD)):
        with pytest.raises(ValueError, match="no proxy"):
            ask()
    with pytest.raises(ValueError, match="x has 3 columns, the samples have 2"):
        fitted.log_prob(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="num must be an integer of at least 1"):
        fitted.sample(0)


def test_an_empty_condition_gives_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JeffreysDensity(draws=FEW, seed=0).fit(GOOD, max_num_epochs=1)


def test_interruption_leaves_the_best_weights_and_no_log_z_of_others():
    """At such a rate the best are those of the start."""
    samples, held_out = draw(50), draw(50, seed=1)

    def interrupt(density):
        if len(density.summary["training_loss"]) == 2:
            raise KeyboardInterrupt

    density = JeffreysDensity(seed=0, learning_rate=0.5)
    with pytest.raises(KeyboardInterrupt):
        density.fit(samples, held_out, max_num_epochs=9, callback=interrupt)
    assert density._log_partition is None
    assert not density._estimator.training
    # The start, and so what is kept, is the Gaussian of the samples.
    kept, gaussian = (
        density.log_prob(held_out),
        MultivariateNormal(samples.mean(0), samples.T.cov()),
    )
    assert (kept - gaussian.log_prob(held_out)).abs().mean() < 0.5
    assert -kept.mean() < min(density.summary["validation_loss"]) - 1


def test_the_record_of_the_proxy_is_of_its_normalised_density():
    held_out, test = draw(50, seed=1), draw(50, seed=2)
    found = JeffreysDensity(draws=FEW, seed=0).fit(
        draw(50), held_out, test_data=test, max_num_epochs=2, stop_after_epochs=None
    )
    for key, rows in (("validation_loss_proxy", held_out), ("test_loss_proxy", test)):
        # log Z is drawn anew, and known to some hundredths.
        expected = -found.proxy_log_prob(rows).mean().item()
        assert found.summary[key][-1] == pytest.approx(expected, abs=0.1)


def test_arguments_reach_the_training(monkeypatch):
    seen = []
    original = module.Training

    def training(*args, **kwargs):
        seen.append((*args[2:4], kwargs["simple_start"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "Training", training)
    for flow in ("coupling_nsf", flow_nn(None, hidden_features=16)):
        JeffreysDensity(
            density_estimator=flow,
            draws=FEW,
            batch_size=20,
            learning_rate=1e-3,
            proxy_learning_rate=3e-3,
            proxy_weight_decay=0.3,
            seed=0,
        ).fit(draw(50), max_num_epochs=1, stop_after_epochs=7)
    draws, settings, _ = seen[0]
    assert draws == FEW
    assert settings.training_batch_size == 20
    assert (settings.learning_rate, settings.proxy_learning_rate) == (1e-3, 3e-3)
    assert settings.proxy_weight_decay == 0.3
    assert settings.stop_after_epochs == 7
    assert settings.limits == Limits(math.inf, math.inf)
    assert not any((settings.muon, settings.proxy_plateau, settings.trials))
    assert [simple for _, _, simple in seen] == [True, False]


def test_densities_have_no_gradient():
    found = JeffreysDensity(draws=FEW, seed=0).fit(draw(50), max_num_epochs=1)
    assert not found.log_prob(draw(3)).requires_grad
    assert not found.proxy_log_prob(draw(3)).requires_grad
    assert not found.sample(3).requires_grad


def test_a_fit_that_is_refused_leaves_the_last_one():
    density, x = JeffreysDensity(seed=0).fit(draw(60), max_num_epochs=1), draw(5, seed=9)
    before, summary = density.log_prob(x), density.summary
    log_z = density.log_partition
    with pytest.raises(ValueError, match="outliers among them"):
        density.fit(draw(60), validation_data=torch.full((3, 2), 1e30))
    assert torch.equal(density.log_prob(x), before)
    assert density.summary is summary
    assert density.log_partition == log_z


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JeffreysDensity(batch_size=0.5), "batch_size must be an integer of at least 1"),
        (
            lambda: JeffreysDensity().fit(draw(20), max_num_epochs=1.5),
            "max_num_epochs must be an integer of at least 1, got 1.5",
        ),
    ],
)
def test_numbers_of_rows_and_epochs_are_integers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flows_of_sbi_warn_of_nothing():
    """An x without entries is standardized by sbi, of which torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JeffreysDensity(seed=0, density_estimator="zuko_nsf").fit(
            torch.randn(60, 2), max_num_epochs=1
        )
