"""Records of a benchmark, read into one tidy table.

A row of the table is one number: task, method, num_simulations, seed, observation (its number as
text, or "all" where a number belongs to the whole job), metric, value. What cannot be a row is
kept apart: failed jobs, records that cannot be read, jobs that the grid lacks. Numbers that are
`null`, because they are infinite or cannot be had, have no row.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from ..jobs import Job, grid
from ..records import RecordError, read_record

__all__ = ["ALL", "COLUMNS", "Results", "load_results"]

ALL = "all"
COLUMNS = [*(field.name for field in fields(Job)), "observation", "metric", "value"]


@dataclass(frozen=True)
class Results:
    """All that a folder of records holds."""

    table: pd.DataFrame
    """Tidy table with the columns :data:`COLUMNS`."""
    records: dict[Job, dict[str, Any]]
    """Records of jobs that ran."""
    failed: dict[Job, dict[str, Any]]
    """Records of jobs that failed."""
    corrupt: dict[str, str]
    """Reasons why files could not be read, by name."""
    command: str | None
    """Command line that made the records, where `config.json` has it."""

    def axis(self, name: str) -> list[Any]:
        """Return the sorted values that a field of the jobs takes, failed jobs included."""
        return sorted({getattr(job, name) for job in [*self.records, *self.failed]})

    @property
    def missing(self) -> list[Job]:
        """Jobs of the grid over all that was seen that have no record."""
        jobs = grid(*(self.axis(name) for name in ("task", "method", "num_simulations", "seed")))
        return sorted(set(jobs) - set(self.records) - set(self.failed), key=astuple)


def load_results(directory: Path) -> Results:
    """Read `directory/records/*.json` and, if it is there, `directory/config.json`.

    Args:
        directory: Folder that `sbi-jeffreys bench run` wrote.

    Returns:
        The results.

    Raises:
        ValueError: If there is no record, or none that can be read.
    """
    paths = sorted(p for p in (directory / "records").glob("*.json") if p.name[0] != ".")
    if not paths:
        raise ValueError(
            f"There are no records in {directory / 'records'}. Make some with "
            f"`sbi-jeffreys bench run --out {directory}`."
        )
    done: dict[Job, dict[str, Any]] = {}
    failed: dict[Job, dict[str, Any]] = {}
    corrupt = {}
    for path in paths:
        try:
            record = read_record(path)
            _check_shape(record)
        except (RecordError, OSError) as error:
            corrupt[path.name] = str(error)
            continue
        (done if record["status"] == "ok" else failed)[Job(**record["job"])] = record
    if not done and not failed:
        name, reason = next(iter(corrupt.items()))
        raise ValueError(
            f"None of the {len(paths)} records in {directory / 'records'} can be read; {name}: "
            f"{reason}. `sbi-jeffreys bench run --out {directory}` makes them anew."
        )
    rows = [row for job, record in done.items() for row in _rows(job, record)]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})
    return Results(table, done, failed, corrupt, _command(directory / "config.json"))


def _check_shape(record: dict[str, Any]) -> None:
    for name in ("timings", "metrics", "training", "evaluation", "versions", "machine", "error"):
        if not isinstance(record.get(name) or {}, dict):
            raise RecordError(f"{name} is not an object")
    observations = record["observations"] or []
    if not isinstance(observations, list) or not all(
        isinstance(entry, dict) and "observation" in entry for entry in observations
    ):
        raise RecordError("observations is not a list of objects with a number each")


def _rows(job: Job, record: dict[str, Any]) -> Iterator[list[Any]]:
    whole = {
        **(record["timings"] or {}),
        "peak_memory_mb": record.get("peak_memory_mb"),
        **(record["training"] or {}),
        **(record["metrics"] or {}),
    }
    levels, covered = whole.get("coverage_levels"), whole.get("coverage")
    if isinstance(levels, list) and isinstance(covered, list):
        # Six digits: levels may come from numbers of single precision.
        whole |= {
            f"coverage@{level:g}": value
            for level, value in zip(levels, covered, strict=False)
            if _is_number(level)
        }
    entries = [(ALL, whole), *((str(o["observation"]), o) for o in record["observations"] or [])]
    for observation, entry in entries:
        for metric, value in entry.items():
            if metric != "observation" and _is_number(value):
                yield [*astuple(job), observation, metric, float(value)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _command(path: Path) -> str | None:
    try:
        command = json.loads(path.read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        # Records can be read without it.
        return None
    return command if isinstance(command, str) else None
