"""Many trainings side by side, each written to disk when it is done, so that a killed run resumes.

A run is a function of its arguments that returns a table, and arrays for the figure. Its files are
``runs/<experiment>/<key>.csv`` and ``.npz``; the settings that all runs of a folder share stand
next to them, and runs with other settings are refused, not mixed.
"""

# ruff: noqa: T201
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from ..utils.files import atomic_write

__all__ = ["Result", "run_all"]

Arrays = dict[str, np.ndarray]


class Result(NamedTuple):
    """What a run returns: rows of the table, and arrays for the figure."""

    table: pd.DataFrame
    arrays: Arrays


def run_all(
    out: Path,
    experiment: str,
    function: Callable[..., Result],
    runs: Mapping[str, Mapping[str, Any]],
    *,
    settings: Any,
    jobs: int,
) -> tuple[pd.DataFrame, dict[str, Arrays]]:
    """Run what has not been run yet.

    Args:
        out: Folder of all experiments.
        experiment: Name of this one.
        function: Called in a process with one thread, as ``function(settings=..., **arguments)``.
        runs: Arguments of each run by its key, a file name.
        settings: NamedTuple of numbers that all runs share.
        jobs: Processes.

    Returns:
        The tables one below the other, with the run's key in the column ``run``, and the arrays
        by key; both in the order of ``runs``.

    Raises:
        ValueError: If the folder holds runs with other settings.
    """
    folder = out / "runs" / experiment
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", settings._asdict())
    missing = {key: arguments for key, arguments in runs.items() if not _file(folder, key).exists()}
    if missing:
        print(f"{experiment}: {len(missing)} of {len(runs)} runs to do", flush=True)
    start = time.perf_counter()
    done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_run_one)(folder, key, function, settings, dict(arguments))
        for key, arguments in missing.items()
    )
    for number, (key, seconds) in enumerate(done, start=1):
        left = (time.perf_counter() - start) / number * (len(missing) - number)
        print(f"{experiment} {key}: {seconds:.0f} s, about {left / 60:.0f} min left", flush=True)
    tables = [pd.read_csv(_file(folder, key)).assign(run=key) for key in runs]
    arrays = {key: dict(np.load(_file(folder, key, ".npz"))) for key in runs}
    return pd.concat(tables, ignore_index=True), arrays


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings, default=str))
    # A first run that was stopped before its end binds nobody.
    if not path.exists() or not any(path.parent.glob("*.csv")):
        path.write_text(json.dumps(settings, indent=1))
    elif (old := json.loads(path.read_text())) != settings:
        differ = [k for k in {**old, **settings} if old.get(k) != settings.get(k)]
        raise ValueError(
            f"{path.parent} holds runs with other settings ({', '.join(differ)}); give another "
            "--out, or delete that folder."
        )


def _file(folder: Path, key: str, suffix: str = ".csv") -> Path:
    return folder / f"{key}{suffix}"


def _run_one(
    folder: Path, key: str, function: Callable[..., Result], settings: Any, arguments: dict
) -> tuple[str, float]:
    torch.set_num_threads(1)
    start = time.perf_counter()
    with warnings.catch_warnings():
        # High learning rates are there to break things; the table shows whether they did.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = function(settings=settings, **arguments)
    # The table last: it says that the run is complete.
    with atomic_write(_file(folder, key, ".npz")) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **result.arrays)
    with atomic_write(_file(folder, key)) as temporary:
        result.table.to_csv(temporary, index=False)
    return key, time.perf_counter() - start
