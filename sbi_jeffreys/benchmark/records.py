"""Records on disk: one JSON file for each job, written atomically and checked when read.

A record is written to a temporary file in the same folder, flushed to the disk and renamed: at any
instant it is there as a whole or not at all. JSON is strict: what is not finite is ``null``. The
evaluation that a folder's records share stands in ``config.json`` beside them.
``docs/benchmark.md`` has the schema.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from ..utils.files import TEMPORARY, atomic_write
from .jobs import Evaluation, Job

__all__ = [
    "SCHEMA",
    "RecordError",
    "read_record",
    "record_path",
    "remove_stale",
    "shared_config",
    "write_json",
]

SCHEMA = 1
REQUIRED = ("job", "evaluation", "timings", "training", "metrics", "observations", "error")


class RecordError(ValueError):
    """A record that cannot be used, with the reason."""


# As atomic_write names them.
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{32}}(\.\w+)?")


def record_path(folder: Path, job: Job) -> Path:
    """Return where a job's record lies in the folder of a run."""
    return folder / "records" / f"{job.id}.json"


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically; numbers that are not finite become ``null``.

    Args:
        path: File, whose folder exists.
        content: What JSON can hold.

    Raises:
        OSError: If it cannot be written; no part of it remains.
    """
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of writers that were killed.

    Only those of this run's own writers: a folder below may be another's, who is at work.
    """
    for place in (folder, folder / "records", folder / "reference"):
        for path in place.glob(f"{TEMPORARY}*"):
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def shared_config(folder: Path, evaluation: Evaluation, *, command: str | None = None) -> None:
    """Write the evaluation of a folder, or check that it is the one that stands there.

    Args:
        folder: Folder of the run.
        evaluation: Evaluation of all its records.
        command: Command line of the first run, kept for the report.

    Raises:
        ValueError: If the folder has records of another evaluation, with what differs, or if its
            config.json is missing or cannot be read.
    """
    path = folder / "config.json"
    # A run that was stopped before its first record binds nobody.
    if not any((folder / "records").glob("*.json")):
        config = {"schema": SCHEMA, "evaluation": evaluation.to_json(), "command": command}
        write_json(path, config)
        return
    if not path.exists():
        raise ValueError(
            f"{folder} has records, but no config.json, which says how they were evaluated. Put it "
            "back, or choose another --out."
        )
    try:
        there = Evaluation.from_json(_load(path)["evaluation"]).to_json()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be used: {error} Choose another --out, or remove the folder."
        ) from None
    ours = evaluation.to_json()
    different = [f"{k} was {there[k]}, now {ours[k]}" for k in ours if ours[k] != there[k]]
    if different:
        raise ValueError(
            f"{folder} has records of another evaluation: {'; '.join(different)}. Records of one "
            "folder must be comparable: repeat the old values, or choose another --out."
        )


def read_record(path: Path, *, evaluation: Evaluation | None = None) -> dict[str, Any]:
    """Read a record and check it.

    Args:
        path: File.
        evaluation: Evaluation that it must have; ``None`` for any.

    Returns:
        The record.

    Raises:
        RecordError: If it is no whole JSON object of this schema, belongs to another job than its
            name says, or to another evaluation.
        OSError: If it cannot be read.
    """
    try:
        record = _load(path)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise RecordError(f"not a JSON object but {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise RecordError(f"schema is {record.get('schema')!r}, not {SCHEMA}")
    if record.get("status") not in ("ok", "failed"):
        raise RecordError(f"status is {record.get('status')!r}, neither ok nor failed")
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise RecordError(f"without {', '.join(missing)}")
    try:
        job = Job(**record["job"])
    except (TypeError, ValueError) as error:
        raise RecordError(f"its job is wrong: {error}") from None
    if job.id != path.stem:
        raise RecordError(f"it is of job {job.id}")
    if evaluation is not None and record["evaluation"] != evaluation.to_json():
        raise RecordError("its evaluation is not that of config.json")
    return record


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
