"""Running sbi's trainers where neither output nor log files are wanted."""

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["QuietTracker", "quiet", "silent"]


class QuietTracker:
    """Tracker of sbi that keeps nothing, in place of the default one, which writes files."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def log_params(self, params: dict[str, Any]) -> None:
        """Do nothing."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


def silent() -> dict[str, Any]:
    """Return the arguments of a trainer of sbi's that is to show and to write nothing."""
    return {"show_progress_bars": False, "tracker": QuietTracker()}


class _Output:
    """Standard output while it is swallowed: of several threads the last puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before = sys.stdout

    def swallow(self) -> None:
        with self._lock:
            if not self._inside:
                self._before, sys.stdout = sys.stdout, io.StringIO()
            self._inside += 1

    def put_back(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                sys.stdout = self._before


_OUTPUT = _Output()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what sbi's trainers print, and what other threads print meanwhile."""
    _OUTPUT.swallow()
    try:
        yield
    finally:
        _OUTPUT.put_back()
