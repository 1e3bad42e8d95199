"""A table of runs in a CSV file, which a later call completes instead of repeating."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from ..utils.files import atomic_write, locked
from ..utils.signals import ends_like_ctrl_c

__all__ = ["complete"]


def complete(
    path: Path,
    key: list[str],
    jobs: Sequence[tuple],
    run: Callable[..., dict[str, Any]],
    num_processes: int,
    show: Callable[[dict[str, Any]], None],
) -> pd.DataFrame:
    """Return the rows of these runs; those that the file lacks are run, and added to it.

    Args:
        path: The file; its folder is made if it is missing.
        key: Columns that tell one run from another.
        jobs: Values of these columns, a tuple for each run.
        run: Takes a job's values and returns its row, those columns among it.
        num_processes: Processes side by side.
        show: Takes every new row.

    Raises:
        SystemExit: If the file is no such table, or another call is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing(path), ends_like_ctrl_c():
        done = _read(path, key)
        have = set(done[key].itertuples(index=False, name=None))
        runs = Parallel(n_jobs=num_processes, return_as="generator_unordered")(
            delayed(run)(*job) for job in jobs if job not in have
        )
        for row in runs:
            added = pd.DataFrame([row])
            done = added if done.empty else pd.concat([done, added], ignore_index=True)
            with atomic_write(path) as temporary:
                done.to_csv(temporary, index=False)
            show(row)
    asked = set(jobs)
    return done[[each in asked for each in done[key].itertuples(index=False, name=None)]]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Keep other calls out of a file."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock"), path))
        except ValueError as error:
            raise SystemExit(str(error)) from None
        yield


def _read(path: Path, key: list[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=key)
    try:
        done = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} is no table ({error}). Choose another --out.") from None
    if missing := set(key).difference(done.columns):
        raise SystemExit(
            f"{path} has no column {sorted(missing)}: it was written by an earlier version. "
            "Choose another --out."
        )
    return done
