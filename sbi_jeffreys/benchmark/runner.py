"""All jobs of a grid that have no record yet.

A run may be stopped or killed at any instant and started again with the same arguments: what has a
record is left alone, what has none is done. Records that cannot be used are done again, failed jobs
only on request.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..tasks import get_task, list_tasks
from ..utils.files import locked
from .backends import Outcome, Work, run_here, run_on_dask, run_processes
from .evaluate import failed_record, run_job
from .jobs import Evaluation, Job, check_name, grid
from .methods import get_method
from .plugins import Plugin, load_plugin, read_plugin
from .progress import Progress
from .published import published_reference_posterior
from .records import (
    RecordError,
    read_record,
    record_path,
    remove_stale,
    shared_config,
    write_json,
)

__all__ = ["BACKENDS", "Summary", "run_benchmark"]

BACKENDS = ("joblib", "dask")


class Summary(NamedTuple):
    """How a run went.

    Attributes:
        total: Jobs of the grid.
        done: Jobs that were done in this run, failed ones included.
        failed: Jobs of the grid whose record is a failure, of this run or an earlier one.
    """

    total: int
    done: int
    failed: tuple[Job, ...]


def run_benchmark(
    out: Path,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    evaluation: Evaluation | None = None,
    jobs: int = 1,
    backend: str = "joblib",
    scheduler: str | None = None,
    plugins: Sequence[Path] = (),
    retry_failed: bool = False,
    command: str | None = None,
) -> Summary:
    """Run the jobs of a grid that have no record in a folder.

    Args:
        out: Folder; it is made if it is missing.
        tasks: Names of tasks.
        methods: Names of methods.
        budgets: Numbers of simulations.
        seeds: Seeds.
        evaluation: How jobs are judged.
        jobs: Processes at a time; 1 stays in this process.
        backend: "joblib" or "dask".
        scheduler: Address of Dask's scheduler.
        plugins: Files that register methods or tasks.
        retry_failed: Whether jobs whose record is a failure are done again.
        command: Command line, kept for the report.

    Returns:
        Counts, and the jobs that failed.

    Raises:
        ValueError: If a name is unknown, a number out of range, or the folder holds records of
            another evaluation.
        OSError: If a file cannot be read or written, or the cluster cannot be reached.
    """
    evaluation = Evaluation() if evaluation is None else evaluation
    loaded = tuple(map(read_plugin, plugins))
    for plugin in loaded:
        load_plugin(plugin)
    cells = grid(tasks, methods, budgets, seeds)
    _check(cells, evaluation, jobs, backend, scheduler)
    # A method may change the working directory.
    out = out.resolve()
    (out / "records").mkdir(parents=True, exist_ok=True)
    work = partial(_work, evaluation=evaluation, references=out / "reference", plugins=loaded)
    with locked(out / ".lock", out):
        remove_stale(out)
        shared_config(out, evaluation, command=command)
        state = {job: _existing(out, job, evaluation) for job in cells}
        todo = [
            job
            for job, status in state.items()
            if status not in ("ok", "failed") or (status == "failed" and retry_failed)
        ]
        with Progress(len(todo)) as progress:
            if len(todo) < len(cells):
                progress.note(f"{len(cells) - len(todo)} of {len(cells)} jobs have their record.")
            for job, status in state.items():
                if status not in (None, "ok", "failed"):
                    progress.note(f"{record_path(out, job)}: {status}; it is done again.")
            for job, outcome in _outcomes(todo, work, jobs, scheduler):
                record = (
                    failed_record(job, evaluation, outcome)
                    if isinstance(outcome, BaseException)
                    else outcome
                )
                write_json(record_path(out, job), record)
                state[job] = record["status"]
                progress.finished(record)
    failed = tuple(job for job, status in state.items() if status == "failed")
    return Summary(total=len(cells), done=len(todo), failed=failed)


def _check(
    cells: Sequence[Job], evaluation: Evaluation, jobs: int, backend: str, scheduler: str | None
) -> None:
    """Raise for what would fail later, before anything is computed."""
    if not cells:
        raise ValueError("no jobs: tasks, methods, budgets and seeds must each name one or more.")
    for task in sorted({job.task for job in cells}):
        _check_task(task, evaluation)
    for method in sorted({job.method for job in cells}):
        get_method(method)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(
            "the Dask backend and the address of a scheduler go together: "
            "--backend dask --scheduler tcp://HOST:8786"
        )
    evaluation.check_tasks(job.task for job in cells)
    if evaluation.reference == "published":
        published_reference_posterior(cells[0].task, evaluation.numbers[0])


def _check_task(name: str, evaluation: Evaluation) -> None:
    """Raise for a task that is unknown, fails, or lacks the fixed observations asked for."""
    check_name("task", name)
    known = name in list_tasks()
    try:
        task = get_task(name)
    except Exception as error:
        if not known:
            raise
        raise ValueError(f"task {name!r} fails: {type(error).__name__}: {error}") from error
    if evaluation.fresh:
        return
    try:
        task.observation(1)
    except FileNotFoundError as error:
        raise ValueError(
            f"task {name!r} has no file of observations ({Path(error.filename).name}): take new "
            "ones, --observations fresh:3."
        ) from None


def _existing(out: Path, job: Job, evaluation: Evaluation) -> str | None:
    """Return "ok", "failed", ``None`` without a record, or why there is none to be used."""
    path = record_path(out, job)
    try:
        return str(read_record(path, evaluation=evaluation)["status"])
    except FileNotFoundError:
        return None
    except RecordError as error:
        return str(error)


def _work(
    job: Job, *, evaluation: Evaluation, references: Path, plugins: Sequence[Plugin]
) -> dict[str, Any]:
    """Do a job, in whichever process this is."""
    for plugin in plugins:
        load_plugin(plugin)
    return run_job(job, evaluation, references=references)


def _outcomes(
    todo: Sequence[Job], work: Work, jobs: int, scheduler: str | None
) -> Iterator[Outcome]:
    if not todo:
        return iter(())
    if scheduler is not None:
        return run_on_dask(todo, work, scheduler)
    return run_here(todo, work) if jobs == 1 else run_processes(todo, work, jobs)
