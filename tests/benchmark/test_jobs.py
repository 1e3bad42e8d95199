"""Jobs and evaluations check themselves; seeds say what they are for."""

import json

import pytest

from sbi_jeffreys.benchmark.jobs import METRICS, Evaluation, Job, grid

BAD_JOBS = {
    "no simulations": ({"num_simulations": 0}, "num_simulations must be .* got 0"),
    "half a simulation": ({"num_simulations": 0.5}, "num_simulations must be .* got 0.5"),
    "negative seed": ({"seed": -1}, "seed must be .* got -1"),
    "seed of torch": ({"seed": 2**63}, "seed must be at most 9223372036854775807, got 92"),
    "true for a seed": ({"seed": True}, "seed must be .* got True"),
}

BAD_EVALUATIONS = {
    "eleventh": ({"observations": (1, 11)}, "from 1 to 10, or fresh:N .*11"),
    "none": ({"observations": ()}, "from 1 to 10"),
    "fresh:0": ({"observations": "fresh:0"}, "N at least 1, got 'fresh:0'"),
    "stale": ({"observations": "stale:3"}, "got 'stale:3'"),
    "few samples": ({"num_samples": 1}, "num_samples must be at least 10, got 1"),
    "few tests": ({"num_test": 1}, "num_test must be at least 2, got 1"),
    "few for coverage": ({"num_coverage": 99, "metrics": ("coverage",)}, "at least 100, got 99"),
    "metric": ({"metrics": ("nll", "beauty")}, r"unknown metrics \['beauty'\], known are nll"),
    "whose": ({"reference": "mine"}, "own or published, got 'mine'"),
    "published but fresh": (
        {"reference": "published", "observations": "fresh:2"},
        "no published reference samples at fresh:2",
    ),
    "more than published": (
        {"reference": "published", "num_samples": 10_001},
        "num_samples is 10001, but 10000",
    ),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_job_refuses(case):
    changed, message = BAD_JOBS[case]
    good = {"task": "slcp", "method": "npe", "num_simulations": 10, "seed": 0}
    with pytest.raises(ValueError, match=message):
        Job(**(good | changed))


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_evaluation_refuses(case):
    changed, message = BAD_EVALUATIONS[case]
    with pytest.raises(ValueError, match=message):
        Evaluation(**changed)


def test_published_reference_needs_a_published_task():
    evaluation = Evaluation(reference="published")
    evaluation.check_tasks(["slcp", "slcp_distractors"])
    with pytest.raises(ValueError, match="of my_task"):
        evaluation.check_tasks(["slcp", "my_task"])


@pytest.mark.parametrize(
    "evaluation",
    [Evaluation(), Evaluation(observations="fresh:3", metrics=METRICS, quick=True)],
)
def test_evaluation_survives_json(evaluation):
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_order_and_repetition_do_not_make_another_evaluation():
    one = Evaluation(metrics=("c2st", "nll"), observations=(3, 1, 3))
    assert one == Evaluation(metrics=("nll", "c2st"), observations=(1, 3))


def test_unknown_key_of_an_evaluation_is_refused():
    with pytest.raises(ValueError, match="extra"):
        Evaluation.from_json(Evaluation().to_json() | {"extra": 1})


def test_numbers_of_observations():
    assert Evaluation().numbers == tuple(range(1, 11))
    assert Evaluation(observations="fresh:3").numbers == (1, 2, 3)


def test_grid_has_every_job_once_seed_by_seed():
    jobs = grid(["a", "b"], ["m", "m"], [10, 20], [0, 1])
    assert len(jobs) == len({job.id for job in jobs}) == 8
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
