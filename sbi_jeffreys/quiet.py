"""Running sbi's trainers where neither output nor log files are wanted."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

__all__ = ["QuietTracker", "quiet"]


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what sbi's trainers print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
