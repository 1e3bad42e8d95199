"""Warnings that point at the user's line, however deep in the package they are found."""

import sys
import warnings

__all__ = ["warn"]

# What stands between a user's call and the place where something is noticed.
_BETWEEN = {"sbi_jeffreys", "sbi", "torch", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of something, at the innermost line that is neither this package's nor sbi's."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
