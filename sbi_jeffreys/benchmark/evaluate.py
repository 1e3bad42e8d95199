"""One job from simulations to its record.

Whatever goes wrong in a job becomes part of its record; nothing is raised. A job takes its random
numbers from seeds of its own, anew before each of its parts, so that its record does not depend on
what ran before it in the same process, nor on which of its results were cached.
"""

import contextlib
import logging
import random
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..tasks import get_task
from ..utils.quiet import quiet
from ..utils.seeding import derive_seed, forked
from .jobs import Evaluation, Job
from .machine import Stopwatch, describe_machine, peak_memory_mb, reset_peak_memory, versions
from .measures import at_observation, draw, over_simulations
from .methods import Fitted, get_method, trained_as
from .records import SCHEMA
from .references import generator, observations, reference_samples

__all__ = ["failed_record", "run_job"]

TIMED = ("simulation", "training", "sampling", "metrics", "total")
TIMED_CPU = ("training", "total")

# Global generators, warnings and stdout are the process's: one job at a time.
_ONE_JOB = threading.Lock()


def run_job(job: Job, evaluation: Evaluation, *, references: Path | None = None) -> dict[str, Any]:
    """Run a job on one thread.

    Args:
        job: The job.
        evaluation: How it is judged.
        references: Folder of reference samples, see :func:`.references.reference_samples`.

    Returns:
        Record with status "ok" or "failed"; see ``docs/benchmark.md`` for its keys.
    """
    with _ONE_JOB, quiet(), _no_remarks(), forked(), _process_kept():
        reset_peak_memory()
        record, watch = _empty_record(job, evaluation), Stopwatch()
        try:
            with watch.measure("total"):
                _fill(record, job, evaluation, watch, references)
        except (Exception, SystemExit) as error:
            _mark_failed(record, error)
        record["timings"] = _timings(watch)
        record["peak_memory_mb"] = peak_memory_mb()
        return record


@contextlib.contextmanager
def _no_remarks() -> Iterator[None]:
    """Silence sbi's remarks on data that are fine here, and on runs that are meant to be short."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Take one thread; leave their number, and Python's own random numbers, as they were."""
    threads, state = torch.get_num_threads(), random.getstate()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)


def failed_record(job: Job, evaluation: Evaluation, error: BaseException) -> dict[str, Any]:
    """Return the record of a job that ended with its process."""
    record = _empty_record(job, evaluation)
    _mark_failed(record, error)
    return record


def _timings(watch: Stopwatch) -> dict[str, float | None]:
    """Return seconds by name, ``None`` for what was not reached."""
    return {
        **{f"{name}_seconds": watch.seconds.get(name) for name in TIMED},
        **{f"{name}_cpu_seconds": watch.cpu_seconds.get(name) for name in TIMED_CPU},
    }


def _empty_record(job: Job, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": "ok",
        "job": vars(job).copy(),
        "evaluation": evaluation.to_json(),
        "versions": versions(),
        "machine": describe_machine(),
        "started": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds"),
        "timings": _timings(Stopwatch()),
        "peak_memory_mb": None,
        "training": {"epochs": None},
        "metrics": {},
        "observations": [],
        "error": None,
    }


def _mark_failed(record: dict[str, Any], error: BaseException) -> None:
    record["status"] = "failed"
    record["error"] = {
        "type": type(error).__name__,
        "message": _printable(str(error)),
        "traceback": _printable("".join(traceback.format_exception(error))),
    }


def _printable(text: str) -> str:
    """Return a text that a file can hold: names of files may be no text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _fill(
    record: dict[str, Any],
    job: Job,
    evaluation: Evaluation,
    watch: Stopwatch,
    references: Path | None,
) -> None:
    task = get_task(job.task)
    with watch.measure("simulation"):
        seed = generator("simulations", job.task, job.num_simulations, job.seed)
        theta, x = task.simulate(job.num_simulations, generator=seed)
    fit = get_method(job.method)
    training = replace(job, method=trained_as(job.method)).id
    _seed_everything("training", training)
    with watch.measure("training"):
        fitted = fit(
            task.prior, theta, x, seed=derive_seed("method", training), quick=evaluation.quick
        )
    if not isinstance(fitted, Fitted):
        raise TypeError(f"Method {job.method!r} returned {type(fitted).__name__}, not a Fitted.")
    # numpy's and torch's integers are no JSON.
    record["training"]["epochs"] = None if fitted.epochs is None else int(fitted.epochs)
    with watch.measure("metrics"):
        _seed_everything("metrics", job.id)
        record["metrics"] = over_simulations(task, fitted, job, evaluation)
    for observation in observations(task, job, evaluation):
        reference = reference_samples(task, observation, evaluation, references)
        _seed_everything("sampling", job.id, observation.number)
        with watch.measure("sampling"):
            samples = draw(fitted, observation.x, evaluation, task.dim_theta)
        with watch.measure("metrics"):
            row = at_observation(task, fitted, observation, reference, samples, evaluation)
        record["observations"].append({"observation": observation.number, **row})


def _seed_everything(*parts: str | int) -> None:
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- sbi's slice sampler draws from the global one
    torch.manual_seed(seed)
