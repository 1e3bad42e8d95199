"""A job's numbers are those of its method, and depend on nothing but the job."""

import json
import math
from random import getstate
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from sbi_jeffreys.tasks import get_task
from torch.distributions import MultivariateNormal

from sbi_jeffreys.benchmark import measures
from sbi_jeffreys.benchmark.evaluate import run_job
from sbi_jeffreys.benchmark.jobs import METRICS, Evaluation, Job
from sbi_jeffreys.benchmark.methods import Fitted, register, trained_as
from sbi_jeffreys.benchmark.references import Observation, observations

TINY = Evaluation(
    observations=(1, 4),
    num_samples=100,
    num_test=200,
    num_coverage=100,
    metrics=("nll", "sliced_wasserstein", "leakage", "mode_mass", "divergences"),
    quick=True,
)
VOLATILE = ("started", "timings", "peak_memory_mb", "machine")
SEEN = {}


class ExactPosterior:
    """That of gaussian_linear: prior and noise N(0, 0.1 I), hence N(x / 2, 0.05 I)."""

    def distribution(self, x):
        return MultivariateNormal(x / 2, 0.05 * torch.eye(10))

    def sample(self, shape, x):
        return self.distribution(x[0]).sample(shape)

    def sample_batched(self, shape, x, show_progress_bars):
        return self.distribution(x).sample(shape)

    def potential(self, theta, x):
        return self.distribution(x).log_prob(theta)


def exact(prior, theta, x, *, seed, quick=False):
    SEEN["simulations"] = theta, x
    posterior = ExactPosterior()
    return Fitted(posterior, log_prob=lambda theta, x: posterior.distribution(x).log_prob(theta))


def random(prior, theta, x, *, seed, quick=False):
    """Draw from every global generator."""
    SEEN["random"] = (np.random.rand(), torch.rand(()).item(), seed)  # noqa: NPY002
    return exact(prior, theta, x, seed=seed)


def wrong_shape(prior, theta, x, *, seed, quick=False):
    posterior = ExactPosterior()
    posterior.sample = lambda shape, x: torch.zeros(3, 10)
    return Fitted(posterior)


register("test_exact", exact)
register("test_random", random)
register("test_wrong_shape", wrong_shape)


def comparable(record):
    return {key: value for key, value in record.items() if key not in VOLATILE}


def run(task="gaussian_linear", method="test_exact", n=20, seed=0, evaluation=TINY, **kwargs):
    return run_job(Job(task, method, n, seed), evaluation, **kwargs)


def test_exact_posterior_gets_the_values_of_theory():
    evaluation = Evaluation(observations=(1,), num_samples=500, num_test=500, metrics=METRICS)
    record = run(evaluation=evaluation)
    assert record["status"] == "ok", record["error"]
    metrics, (row,) = record["metrics"], record["observations"]
    entropy = ExactPosterior().distribution(torch.zeros(10)).entropy().item()
    assert abs(metrics["nll"] - entropy) < 4 * metrics["nll_standard_error"]
    # Its standard error is that of a sum of ten squares: sqrt(10 / 2 / 500).
    assert metrics["nll_standard_error"] == pytest.approx(0.1, rel=0.2)
    # Uniform ranks over 200 simulations leave the diagonal by 0.12 with probability 0.006
    # (Dvoretzky-Kiefer-Wolfowitz); the mean absolute deviation is below the largest one.
    assert metrics["coverage_error"] < 0.12
    assert metrics["tarp_error"] < 0.12
    assert len(metrics["coverage"]) == len(metrics["coverage_levels"]) == len(metrics["tarp"])
    assert 0.4 < row["c2st"] < 0.6
    assert 0.4 < row["c2st_rf"] < 0.6
    assert abs(row["mmd"]) < 0.02
    # Two sets of 500 in units of a standard deviation of 0.22: quantiles differ by a tenth of it.
    assert row["sliced_wasserstein"] < 0.05
    # Log densities are those of float32 and equal up to a constant.
    for name in ("kl_forward", "kl_reverse", "jeffreys"):
        assert row[name] == pytest.approx(0, abs=1e-3)
        assert row[f"{name}_standard_error"] == pytest.approx(0, abs=1e-3)
    assert row["leakage"] is None
    assert "mode_mass_error" not in row


@pytest.mark.parametrize("method", ["jeffreys", "npe_ensemble"])
def test_same_job_same_record(method, tmp_path):
    first = run("two_moons", method, n=60, references=tmp_path)
    # Other random states, and reference samples that are there already.
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert first["status"] == "ok", first["error"]
    again = run("two_moons", method, n=60, references=tmp_path)
    assert comparable(again) == comparable(first)
    first_path, other_path = sorted(tmp_path.iterdir())
    assert first_path.match("two_moons--observation--1--n100--*.npy")
    assert other_path.match("two_moons--observation--4--n100--*.npy")
    rows = first["observations"]
    assert [row["observation"] for row in rows] == [1, 4]
    assert all(row["leakage"] >= 0 and row["mode_mass_error"] >= 0 for row in rows)
    assert first["training"]["epochs"] >= 2
    assert all(seconds > 0 for seconds in first["timings"].values())
    assert first["peak_memory_mb"] > 50
    json.dumps(first)


def test_methods_see_the_same_simulations_and_other_random_numbers():
    run(method="test_exact")
    theta, x = SEEN["simulations"]
    run(method="test_random")
    first = SEEN["random"]
    assert torch.equal(SEEN["simulations"][0], theta)
    assert torch.equal(SEEN["simulations"][1], x)
    run(method="test_random", seed=1)
    assert not torch.equal(SEEN["simulations"][0], theta)
    assert all(a != b for a, b in zip(first, SEEN["random"], strict=True))


def test_what_is_made_of_the_same_training_has_its_seeds():
    register("test_made_of_it", random, trained_as="test_random")
    found = {}
    for method in ("test_random", "test_made_of_it", "test_exact"):
        register("test_seen", random, trained_as=method)
        run(method="test_seen")
        found[method] = SEEN["random"]
    run(method="test_made_of_it")
    assert SEEN["random"] == found["test_random"] != found["test_exact"]
    assert trained_as("jeffreys_flow") == "jeffreys" == trained_as("jeffreys")


def test_fresh_observations_are_shared_by_methods_and_budgets():
    task, evaluation = get_task("slcp"), Evaluation(observations="fresh:3")
    one, other, next_seed = (
        torch.cat([o.x for o in observations(task, job, evaluation)])
        for job in (Job("slcp", "a", 10, 0), Job("slcp", "b", 20, 0), Job("slcp", "a", 10, 1))
    )
    assert one.shape == (3, 8)
    assert torch.equal(one, other)
    assert not torch.isclose(one, next_seed).any()
    record = run(evaluation=Evaluation(observations="fresh:2", num_samples=20, metrics=("mmd",)))
    assert [row["observation"] for row in record["observations"]] == [1, 2]


def test_published_reference(monkeypatch):
    published = torch.full((10_000, 10), 5.0)
    monkeypatch.setattr(
        "sbi_jeffreys.benchmark.references.published_reference_posterior", lambda *_: published
    )
    evaluation = Evaluation(
        observations=(1,), num_samples=50, reference="published", metrics=("c2st",)
    )
    (row,) = run(evaluation=evaluation)["observations"]
    assert row["c2st"] == 1.0


def test_failure_is_recorded_with_its_traceback():
    record = run(method="test_wrong_shape")
    assert record["status"] == "failed"
    assert record["error"]["type"] == "ValueError"
    assert "gave shape (3, 10)" in record["error"]["message"]
    assert "in draw" in record["error"]["traceback"]
    assert record["timings"]["metrics_seconds"] > 0


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda: torch.zeros(100, 9), r"gave shape \(100, 9\), not \(100, 10\)"),
        (lambda: torch.full((100, 10), math.nan), r"posterior.sample.* gave 100 samples with NaN"),
        (lambda: np.zeros((100, 10)), r"gave ndarray: return a tensor"),
    ],
)
def test_what_a_method_draws_is_looked_at(drawn, message):
    fitted = Fitted(ExactPosterior())
    fitted.posterior.sample = lambda shape, x: drawn()
    with pytest.raises((TypeError, ValueError), match=message):
        measures.draw(fitted, torch.zeros(1, 10), TINY, 10)


@pytest.mark.parametrize("epochs", [np.int64(3), torch.tensor(3)])
def test_epochs_of_numpy_and_torch_are_json(epochs):
    register("test_epochs", lambda *args, **kwargs: Fitted(ExactPosterior(), epochs=epochs))
    record = run(method="test_epochs")
    assert record["status"] == "ok", record["error"]
    assert json.loads(json.dumps(record))["training"]["epochs"] == 3


def test_an_error_that_no_file_can_hold():
    def fit(prior, theta, x, *, seed, quick=False):
        raise OSError("no file \udc80")

    register("test_unprintable", fit)
    error = run(method="test_unprintable")["error"]
    assert error["message"] == "no file \\udc80"
    error["traceback"].encode()


@pytest.mark.parametrize("shape", [(1,), (200, 1), ()])
def test_a_density_of_another_shape_is_refused(shape):
    fitted = Fitted(None, log_prob=lambda theta, x: torch.zeros(shape))
    job = Job("gaussian_linear", "a", 10, 0)
    with pytest.raises(ValueError, match=r"theta of shape \(200, 10\) gave shape"):
        measures.over_simulations(get_task("gaussian_linear"), fitted, job, TINY)


def test_coverage_of_a_posterior_that_takes_one_x():
    class Plain:
        def sample(self, shape, x):
            assert x.shape == (1, 10)
            return ExactPosterior().sample(shape, x)

    density = exact(None, None, None, seed=0).log_prob
    task, job = get_task("gaussian_linear"), Job("gaussian_linear", "a", 10, 0)
    evaluation = Evaluation(num_coverage=100, metrics=("coverage",), quick=True)
    found = measures.over_simulations(task, Fitted(Plain(), log_prob=density), job, evaluation)
    # As above, with half of the simulations.
    assert found["coverage_error"] < 0.17


def test_a_method_that_returns_nothing():
    register("test_nothing", lambda prior, theta, x, *, seed, quick=False: None)
    record = run(method="test_nothing")
    assert record["error"]["message"] == "Method 'test_nothing' returned NoneType, not a Fitted."


def test_divergences_are_those_of_the_truncated_density():
    task, posterior = get_task("gaussian_linear"), ExactPosterior()
    # A density of half the mass, and half of it leaks: what is left is the posterior.
    fitted = Fitted(posterior, lambda t, x: posterior.distribution(x).log_prob(t) - math.log(2))
    x = task.observation(1)
    reference = task.reference_posterior(1, 100, generator=torch.Generator().manual_seed(0))
    values = measures._divergences(task, fitted, x, reference, posterior.sample((100,), x), 0.5)
    assert values["kl_forward"] == pytest.approx(0, abs=1e-3)
    assert values["kl_reverse"] == pytest.approx(0, abs=1e-3)
    all_leaks = measures._divergences(task, fitted, x, reference, reference, 1.0)
    assert set(all_leaks) == set(values)
    assert set(all_leaks.values()) == {None}


def test_the_process_stays_as_it_was():
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    state, states = getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(threads + 1)
    try:
        run()
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert getstate() == state
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_divergences_of_samples_that_all_lie_outside_of_the_prior_are_null():
    task = get_task("two_moons")
    fitted = Fitted(None, log_prob=lambda theta, x: torch.zeros(len(theta)))
    x, reference = task.observation(1), task.reference_posterior(1, 10)
    row = measures._divergences(task, fitted, x, reference, reference + 100.0, 0.9)
    assert set(row.values()) == {None}
    assert None not in measures._divergences(task, fitted, x, reference, reference, 0.0).values()


def test_divergences_of_a_wider_density_are_those_of_theory():
    task = get_task("gaussian_linear")
    x = task.observation(1)
    wide = MultivariateNormal(x[0] / 2, 0.1 * torch.eye(10))
    torch.manual_seed(0)
    reference = task.reference_posterior(1, 2000, generator=torch.Generator().manual_seed(0))
    fitted = Fitted(None, log_prob=lambda theta, x: wide.log_prob(theta))
    row = measures._divergences(task, fitted, x, reference, wide.sample((2000,)), 0.0)
    # Twice the variance in ten dimensions.
    forward, reverse = 5 * (math.log(2) - 0.5), 5 * (1 - math.log(2))
    for name, value in (("kl_forward", forward), ("kl_reverse", reverse), ("jeffreys", 2.5)):
        assert row[name] == pytest.approx(value, abs=0.3)


def test_metrics_of_samples_take_the_reference_first(monkeypatch):
    task, calls = get_task("gaussian_linear"), []
    for name in measures.SAMPLE_METRICS:
        monkeypatch.setitem(measures.SAMPLE_METRICS, name, lambda *args: calls.append(args) or 0.0)
    evaluation = Evaluation(metrics=tuple(measures.SAMPLE_METRICS))
    reference, samples = torch.zeros(3, 10), torch.ones(3, 10)
    observation = Observation(1, task.observation(1), ("key",))
    measures.at_observation(task, Fitted(None), observation, reference, samples, evaluation)
    assert len(calls) == len(measures.SAMPLE_METRICS)
    assert all(a is reference and b is samples for a, b in calls)


def test_leakage_is_the_mean_over_members_of_as_many_draws_as_samples(monkeypatch):
    task, asked = get_task("gaussian_linear"), []

    def leakage(estimator, prior, x, *, draws):
        asked.append(draws)
        return torch.tensor([estimator])

    monkeypatch.setattr(measures, "leakage", leakage)
    observation = Observation(1, task.observation(1), ("key",))
    fitted, samples = Fitted(None, estimators=(0.2, 0.4)), torch.zeros(30, 10)
    evaluation = Evaluation(num_samples=30, metrics=("leakage",))
    row = measures.at_observation(task, fitted, observation, samples, samples, evaluation)
    assert row == {"leakage": pytest.approx(0.3)}
    assert asked == [30, 30]


class Asked(DirectPosterior):
    """A posterior of sbi's that keeps what it is asked."""

    def __init__(self):
        self.calls = []

    def sample(self, shape, **kwargs):
        self.calls.append(kwargs)
        return torch.zeros(*shape, 10)


@pytest.mark.parametrize("quick", [False, True])
def test_what_leaks_is_rejected_but_for_a_smoke_test(quick):
    posterior, x = Asked(), torch.zeros(1, 10)
    evaluation = Evaluation(num_samples=10, quick=quick)
    measures.draw(Fitted(posterior, estimators=("one",)), x, evaluation, 10)
    (call,) = posterior.calls
    assert call["reject_outside_prior"] is not quick
    assert call["max_sampling_time"] == measures.PATIENCE


def test_test_simulations_are_those_of_task_and_seed():
    task, evaluation = get_task("gaussian_linear"), Evaluation(num_test=5, metrics=("nll",))
    seen = []
    fitted = Fitted(None, log_prob=lambda theta, x: seen.append(theta) or theta[:, 0])
    for method, n, seed in (("a", 10, 0), ("b", 20, 0), ("a", 10, 1)):
        job = Job("gaussian_linear", method, n, seed)
        measures.over_simulations(task, fitted, job, evaluation)
    assert torch.equal(seen[0], seen[1])
    assert not torch.isclose(seen[0], seen[2]).any()


def test_errors_of_coverage_are_of_their_own_curves(monkeypatch):
    result = SimpleNamespace(
        levels=torch.tensor([0.2, 0.8]),
        highest_density=torch.tensor([0.3, 0.8]),
        tarp=torch.tensor([0.2, 0.4]),
        p_values=torch.tensor([0.5]),
    )
    monkeypatch.setattr(measures, "coverage", lambda *args, **kwargs: result)
    task, job = get_task("gaussian_linear"), Job("gaussian_linear", "a", 10, 0)
    evaluation = Evaluation(metrics=("coverage",))
    density = {"log_prob": lambda theta, x: theta[:, 0]}
    found = measures.over_simulations(task, Fitted(None, **density), job, evaluation)
    assert found["coverage_error"] == pytest.approx(0.05)
    assert found["tarp_error"] == pytest.approx(0.2)
    # Where each x needs a Markov chain there is none.
    slow = Fitted(None, **density, amortised=False)
    assert measures.over_simulations(task, slow, job, evaluation) == {
        "coverage_error": None,
        "tarp_error": None,
    }


@pytest.mark.filterwarnings("ignore:.*reject_outside_prior")
def test_draws_that_leak_keep_no_graph():
    """Of an untrained network of sbi's: a graph of hundreds of thousands takes all memory."""
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((50,))
    estimator = posterior_nn("maf")(theta, theta)
    posterior = DirectPosterior(estimator, prior)
    fitted = Fitted(posterior, log_prob=lambda t, x: t[:, 0], estimators=(estimator,))
    drawn = measures._AllDraws(fitted).sample_batched((5,), x=theta[:3], show_progress_bars=False)
    assert drawn.shape == (5, 3, 2)
    assert not drawn.requires_grad
