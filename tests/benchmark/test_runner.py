"""Runs skip what is done, survive what fails, and go on after SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from sbi_jeffreys.tasks.registry import TASKS

from sbi_jeffreys.benchmark import backends
from sbi_jeffreys.benchmark.jobs import Evaluation
from sbi_jeffreys.benchmark.runner import run_benchmark

pytestmark = pytest.mark.full_fit

PLUGIN = Path(__file__).parent / "plugin_methods.py"
EVALUATION = Evaluation(
    observations=(1,), num_samples=20, num_test=20, metrics=("nll", "mode_mass"), quick=True
)
VOLATILE = ("started", "timings", "peak_memory_mb", "machine")


def run(out, *methods, seeds=(0, 1), **kwargs):
    kwargs = {"plugins": [PLUGIN], "evaluation": EVALUATION, "tasks": ["two_moons"]} | kwargs
    return run_benchmark(out, methods=methods, budgets=[20], seeds=seeds, **kwargs)


def records(out):
    found = {path.stem: json.loads(path.read_text()) for path in (out / "records").iterdir()}
    return {
        name: {key: value for key, value in record.items() if key not in VOLATILE}
        for name, record in sorted(found.items())
    }


def changes(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "records").iterdir()}


def test_second_run_does_what_is_missing(tmp_path, capsys):
    assert run(tmp_path, "test_prior").done == 2
    before = changes(tmp_path)
    summary = run(tmp_path, "test_prior", seeds=(0, 1, 2))
    assert (summary.total, summary.done, summary.failed) == (3, 1, ())
    after = changes(tmp_path)
    assert {name: after[name] for name in before} == before
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["2 of 3 jobs have their record.", printed[-1]]
    # The prior of two_moons has density 1/4: its NLL is log 4.
    assert printed[-1].startswith("[1/1] two_moons test_prior n=20 seed 2: nll 1.386, ")


def test_failures_do_not_stop_the_rest_and_are_redone_on_request(tmp_path, capsys):
    summary = run(tmp_path, "test_broken", "test_prior", seeds=[0])
    assert [job.id for job in summary.failed] == ["two_moons--test_broken--n20--seed0"]
    assert "FAILED, RuntimeError: out of luck" in capsys.readouterr().out
    statuses = {name: record["status"] for name, record in records(tmp_path).items()}
    assert sorted(statuses.values()) == ["failed", "ok"]
    again = run(tmp_path, "test_broken", "test_prior", seeds=[0])
    assert (again.done, len(again.failed)) == (0, 1)
    assert run(tmp_path, "test_broken", "test_prior", seeds=[0], retry_failed=True).done == 1


@pytest.mark.parametrize("damage", [lambda text: text[:100], lambda text: text.replace("20", "21")])
def test_corrupt_record_is_reported_and_redone(damage, tmp_path, capsys):
    run(tmp_path, "test_prior")
    expected = records(tmp_path)
    path = tmp_path / "records" / "two_moons--test_prior--n20--seed0.json"
    path.write_text(damage(path.read_text()))
    capsys.readouterr()
    assert run(tmp_path, "test_prior").done == 1
    assert f"{path}: " in capsys.readouterr().out
    assert records(tmp_path) == expected


def test_another_evaluation_is_refused_before_anything_runs(tmp_path):
    run(tmp_path, "test_prior")
    before = changes(tmp_path)
    other = Evaluation(observations=(2,), num_samples=20, num_test=20, quick=True)
    with pytest.raises(ValueError, match=r"observations was \[1\], now \[2\]"):
        run(tmp_path, "test_prior", "test_slow", evaluation=other)
    assert changes(tmp_path) == before


def test_one_and_two_processes_give_the_same_records(tmp_path):
    methods = ("test_prior", "jeffreys")
    run(tmp_path / "one", *methods)
    run(tmp_path / "two", *methods, jobs=2)
    assert records(tmp_path / "one") == records(tmp_path / "two")
    assert len(records(tmp_path / "one")) == 4


def test_killed_run_goes_on(tmp_path):
    run(tmp_path / "whole", "test_slow")
    out, code = tmp_path / "killed", "import test_runner, pathlib, sys; test_runner.run_slowly()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TEST_OUT": str(out)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 120
    while not list(out.glob("records/two*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (first,) = changes(out)
    # Its second job sleeps for a second before it does anything.
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # As a writer that was killed leaves it.
    (out / "records" / f".tmp-{uuid.uuid4().hex}.json").touch()
    before = changes(out)[first]
    assert run(out, "test_slow").done == 1
    assert changes(out)[first] == before
    assert records(out) == records(tmp_path / "whole")
    assert not list(out.rglob(".tmp-*"))


def test_workers_end_with_a_run_that_is_told_to(tmp_path):
    code = "import test_runner; test_runner.run_beside_each_other()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    environment |= {"TEST_OUT": str(tmp_path), "TEST_WORKERS": str(tmp_path / "workers")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    workers, deadline = tmp_path / "workers", time.monotonic() + 120
    workers.mkdir()
    while len(list(workers.iterdir())) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    # As Python ends by Ctrl-C.
    assert process.wait(timeout=60) == -signal.SIGINT
    # They would sleep for much longer.
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(worker):
    try:
        os.kill(int(worker.name), 0)
    except ProcessLookupError:
        return False
    return True


def run_beside_each_other():
    run(Path(os.environ["TEST_OUT"]), "test_long", jobs=2)


def test_a_method_that_changes_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(Path("here"), "test_elsewhere").failed == ()
    assert len(records(tmp_path / "here")) == 2


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("a/b", TASKS["two_moons"], "task name 'a/b' must consist of letters"),
        ("half", lambda: 1 / 0, "task 'half' fails: ZeroDivisionError: division by zero"),
    ],
)
def test_tasks_that_will_not_do(name, task, message, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, name, task)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "test_prior", tasks=[name])
    assert not (tmp_path / "records").exists()


def run_slowly():
    run(Path(os.environ["TEST_OUT"]), "test_slow")


def test_a_pool_that_is_found_dead_loses_no_job(monkeypatch):
    """It may die while a record is written, and say so when the next job is handed out."""
    deaths = [True]

    class Pool:
        def __init__(self, *args, **kwargs):
            self.submitted = 0

        def submit(self, work, job):
            self.submitted += 1
            if self.submitted == 2 and deaths:
                deaths.pop()
                raise backends.BrokenProcessPool
            future = Future()
            future.set_result(work(job))
            return future

        def shutdown(self, **kwargs):
            pass

    monkeypatch.setattr(backends, "ProcessPoolExecutor", Pool)
    done = [job for job, _ in backends.run_processes([1, 2, 3], lambda job: {}, 1)]
    assert sorted(done) == [1, 2, 3]
    assert not deaths


@pytest.mark.slow
def test_workers_that_die(tmp_path, monkeypatch):
    monkeypatch.setenv("KILLED_ONCE", str(tmp_path / "marker"))
    methods = ("test_prior", "test_killer", "test_killer_once")
    summary = run(tmp_path / "out", *methods, seeds=[0], jobs=2)
    assert (tmp_path / "marker").exists()
    assert [job.method for job in summary.failed] == ["test_killer"]
    found = records(tmp_path / "out")
    assert len(found) == 3
    failed = found["two_moons--test_killer--n20--seed0"]
    assert failed["error"]["type"] == "TerminatedWorkerError"


BAD = {
    "task": ({"tasks": ["two_suns"]}, "unknown task 'two_suns', known are"),
    "method": ({"methods": ["npee"]}, "unknown method 'npee', known are .* did you mean 'npe'"),
    "no seeds": ({"seeds": []}, "no jobs"),
    "budget": ({"budgets": [0]}, "num_simulations must be .* got 0"),
    "jobs": ({"jobs": 0}, "jobs must be at least 1, got 0"),
    "backend": ({"backend": "slurm"}, "joblib, dask, got 'slurm'"),
    "dask without address": ({"backend": "dask"}, "--scheduler"),
    "address without dask": ({"scheduler": "tcp://127.0.0.1:1"}, "--backend dask"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_found_before_the_folder_is_made(case, tmp_path):
    changed, message = BAD[case]
    good = {"tasks": ["two_moons"], "methods": ["npe"], "budgets": [20], "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        run_benchmark(tmp_path / "out", **(good | changed))
    assert not (tmp_path / "out").exists()


def test_published_reference_that_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("SBI_JEFFREYS_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sbi-jeffreys data fetch"):
        run(tmp_path / "out", "npe", evaluation=Evaluation(reference="published"))


EXITS = """
import sys
from sbi_jeffreys.benchmark.methods import register
register("test_exits", lambda *args, **kwargs: sys.exit(5))
"""
TASK = """
from sbi_jeffreys.tasks.registry import TASKS
from sbi_jeffreys.tasks.two_moons import TwoMoons

class Mine(TwoMoons):
    name = "mine"

TASKS["mine"] = Mine
"""


def test_a_method_that_exits_is_a_failed_job(tmp_path):
    plugin = tmp_path / "exits.py"
    plugin.write_text(EXITS)
    summary = run(tmp_path, "test_exits", "test_prior", seeds=[0], plugins=[PLUGIN, plugin])
    assert [job.method for job in summary.failed] == ["test_exits"]
    assert summary.done == 2


def test_a_task_of_a_plugin_is_judged_at_new_observations(tmp_path, monkeypatch):
    monkeypatch.setattr("sbi_jeffreys.tasks.registry.TASKS", dict(TASKS))
    plugin = tmp_path / "mine.py"
    plugin.write_text(TASK)
    arguments = {"seeds": [0], "tasks": ["mine"], "plugins": [PLUGIN, plugin]}
    with pytest.raises(ValueError, match=r"'mine' has no file of observations.*fresh:3"):
        run(tmp_path / "a", "test_prior", **arguments)
    fresh = replace(EVALUATION, observations="fresh:2", metrics=("nll", "leakage", "divergences"))
    assert run(tmp_path / "b", "test_prior", evaluation=fresh, **arguments).failed == ()


def test_plugin_with_a_mistake(tmp_path):
    plugin = tmp_path / "mistake.py"
    plugin.write_text("import math\nmath.tao\n")
    with pytest.raises(ValueError, match=r"mistake\.py: AttributeError: .*tao"):
        run(tmp_path / "out", "npe", plugins=[plugin])
