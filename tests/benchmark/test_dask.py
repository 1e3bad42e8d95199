"""The same records from a Dask cluster, also when a worker dies."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from sbi_jeffreys.benchmark import backends
from sbi_jeffreys.benchmark.backends import run_on_dask
from sbi_jeffreys.benchmark.jobs import Evaluation, Job
from sbi_jeffreys.benchmark.runner import run_benchmark

distributed = pytest.importorskip("distributed")

PLUGIN = Path(__file__).parent / "plugin_methods.py"
EVALUATION = Evaluation(
    observations=(1,), num_samples=20, num_test=20, metrics=("nll", "mode_mass"), quick=True
)
VOLATILE = ("started", "timings", "peak_memory_mb", "machine")
QUIET = {"dashboard_address": ":0", "silence_logs": 50}


def run(out, *methods, seeds, **kwargs):
    return run_benchmark(
        out,
        tasks=["two_moons"],
        methods=methods,
        budgets=[20],
        seeds=seeds,
        evaluation=EVALUATION,
        plugins=[PLUGIN],
        **kwargs,
    )


def records(out):
    found = {path.stem: json.loads(path.read_text()) for path in (out / "records").iterdir()}
    return {
        name: {key: value for key, value in record.items() if key not in VOLATILE}
        for name, record in sorted(found.items())
    }


def test_jobs_and_errors_come_back():
    def work(job):
        if job.seed == 1:
            raise RuntimeError("out of luck")
        return {"seed": job.seed}

    jobs = [Job("slcp", "npe", 10, seed) for seed in range(3)]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", **QUIET
    ) as cluster:
        outcomes = dict(run_on_dask(jobs, work, cluster.scheduler_address))
    assert outcomes[jobs[0]] == {"seed": 0}
    assert isinstance(outcomes[jobs[1]], RuntimeError)
    assert outcomes[jobs[2]] == {"seed": 2}


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'sbi_jeffreys\[dask\]'"):
        next(run_on_dask([], print, "tcp://127.0.0.1:1"))


def test_scheduler_out_of_reach_or_without_workers(monkeypatch):
    monkeypatch.setattr(backends, "DASK_PATIENCE", 0.5)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        next(run_on_dask([], print, "tcp://127.0.0.1:1"))
    with (
        distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", **QUIET) as cluster,
        pytest.raises(OSError, match="has no workers after"),
    ):
        next(run_on_dask([], print, cluster.scheduler_address))


@pytest.mark.slow
def test_no_record_is_lost_when_a_worker_is_killed(tmp_path):
    seeds = range(8)
    run(tmp_path / "here", "test_slow", seeds=seeds)
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, **QUIET
    ) as cluster:
        victim = next(iter(cluster.workers.values())).pid
        killed = threading.Event()

        def kill():
            deadline = time.monotonic() + 300
            while len(list((tmp_path / "dask" / "records").glob("two*"))) < 2:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        thread = threading.Thread(target=kill)
        (tmp_path / "dask" / "records").mkdir(parents=True)
        thread.start()
        address = cluster.scheduler_address
        summary = run(
            tmp_path / "dask", "test_slow", seeds=seeds, backend="dask", scheduler=address
        )
        thread.join()
    assert killed.is_set()
    assert summary == (8, 8, ())
    assert records(tmp_path / "dask") == records(tmp_path / "here")


@pytest.mark.slow
def test_job_that_kills_its_workers_is_recorded_as_failed(tmp_path):
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, **QUIET
    ) as cluster:
        summary = run(
            tmp_path,
            "test_killer",
            "test_prior",
            seeds=[0],
            backend="dask",
            scheduler=cluster.scheduler_address,
        )
    assert [job.method for job in summary.failed] == ["test_killer"]
    failed = records(tmp_path)["two_moons--test_killer--n20--seed0"]
    assert failed["error"]["type"] == "KilledWorker"
