"""Where jobs run: in this process, in others on this machine, on a Dask cluster.

Each backend takes jobs and a function that does one, and yields every job once, with its record or
with the error that ended its process. Records are written by whoever consumes them, the process
that the user started, and by nobody else: workers need no file system in common with it, no two
processes write the same file, and what a worker had not delivered when it died is done again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from joblib.externals.loky import (
    FIRST_COMPLETED,
    BrokenProcessPool,
    ProcessPoolExecutor,
    wait,
)

from ..utils.signals import ends_like_ctrl_c
from .jobs import Job

__all__ = ["Outcome", "Work", "run_here", "run_on_dask", "run_processes"]

Work = Callable[[Job], dict[str, Any]]
Outcome = tuple[Job, dict[str, Any] | BaseException]

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
DASK_PATIENCE = 60.0


def run_here(jobs: Iterable[Job], work: Work) -> Iterator[Outcome]:
    """Do one job after the other in this process."""
    for job in jobs:
        yield job, work(job)


def run_processes(jobs: Iterable[Job], work: Work, processes: int) -> Iterator[Outcome]:
    """Do jobs in joblib's worker processes.

    When a worker dies, for want of memory or by a signal, all that were at work are stopped. The
    jobs that they had are done again, each alone; one that dies alone has failed.
    """
    with ends_like_ctrl_c():
        yield from _until_all_done(deque(jobs), work, processes)


def _until_all_done(waiting: deque[Job], work: Work, processes: int) -> Iterator[Outcome]:
    suspects = deque[Job]()
    while waiting or suspects:
        alone = bool(suspects)
        queue, width = (suspects, 1) if alone else (waiting, processes)
        executor = ProcessPoolExecutor(width, env=ONE_THREAD)
        # No more jobs than workers are handed out: what is with a dead pool is suspect.
        running: dict[Any, Job] = {}
        try:
            while queue or running:
                while queue and len(running) < width:
                    # Off the queue only when it is handed out: a pool may be found dead here.
                    future = executor.submit(work, queue[0])
                    running[future] = queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    record = future.result()
                    yield running.pop(future), record
        except BrokenProcessPool as death:
            for future, job in running.items():
                if future.done() and future.exception() is None:
                    yield job, future.result()
                elif alone:
                    yield job, death
                else:
                    suspects.append(job)
        finally:
            # Ctrl-C, and whoever stops to take outcomes, must not wait for jobs under way.
            executor.shutdown(wait=True, kill_workers=bool(running))


def run_on_dask(jobs: Iterable[Job], work: Work, scheduler: str) -> Iterator[Outcome]:
    """Do jobs on a Dask cluster.

    Dask gives the jobs of a worker that dies to another one, results that were not fetched yet
    included. A job whose workers died more often than ``distributed.scheduler.allowed-failures``
    has failed.

    Raises:
        ValueError: If Dask is not installed.
        OSError: If the scheduler cannot be reached, or has no workers.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError(
            "the Dask backend needs the package distributed: pip install 'sbi_jeffreys[dask]'"
        ) from None
    with Client(scheduler, timeout=DASK_PATIENCE) as client:
        try:
            client.wait_for_workers(1, timeout=DASK_PATIENCE)
        # In Python 3.10 another class than TimeoutError.
        except asyncio.TimeoutError:
            raise OSError(
                f"the scheduler at {scheduler} has no workers after {DASK_PATIENCE:.0f} s; start "
                f"some with `dask worker {scheduler} --nthreads 1`"
            ) from None
        # Not pure: the same job in two runs of one cluster is not the same task.
        futures = {client.submit(work, job, pure=False): job for job in jobs}
        for future in as_completed(list(futures)):
            job, error = futures.pop(future), future.exception()
            yield job, future.result() if error is None else error
            # The cluster need not keep what is written.
            future.release()
