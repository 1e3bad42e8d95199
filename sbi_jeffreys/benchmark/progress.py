"""What a run says while it is under way: a bar where there is a terminal, else lines alone."""

import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

SHOWN_METRICS = ("nll",)
SHOWN_AT_OBSERVATIONS = ("c2st", "c2st_rf")


class Progress:
    """Counts jobs and writes a line for each that is done.

    Args:
        total: Number of jobs to do.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._start = time.perf_counter()
        self._bar = tqdm(total=total, desc="jobs", disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def note(self, text: str) -> None:
        """Write a line."""
        self._bar.write(text)

    def finished(self, record: dict[str, Any]) -> None:
        """Count a job and write its main numbers."""
        self.done += 1
        width = len(str(self.total))
        left = (time.perf_counter() - self._start) / self.done * (self.total - self.done)
        self.note(f"[{self.done:>{width}}/{self.total}] {describe(record)}; {_duration(left)} left")
        self._bar.update()


def describe(record: dict[str, Any]) -> str:
    """Return a record's job and main numbers in a line."""
    job = record["job"]
    name = f"{job['task']} {job['method']} n={job['num_simulations']} seed {job['seed']}"
    if record["status"] == "failed":
        error = record["error"]
        reason = (error["message"].splitlines() or [""])[0]
        return f"{name}: FAILED, {error['type']}: {reason}"
    numbers = [
        f"{metric} {record['metrics'][metric]:.3f}"
        for metric in SHOWN_METRICS
        if record["metrics"].get(metric) is not None
    ]
    for metric in SHOWN_AT_OBSERVATIONS:
        values = [row[metric] for row in record["observations"] if row.get(metric) is not None]
        if values:
            numbers.append(f"{metric} {sum(values) / len(values):.3f}")
    numbers.append(_duration(record["timings"]["total_seconds"]))
    return f"{name}: {', '.join(numbers)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
