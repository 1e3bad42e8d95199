"""What several commands share: types of arguments, and how errors are told."""

# ruff: noqa: T201
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["exit_status", "natural", "positive", "read_text"]


def exit_status(command: str, run: Callable[[], int | None]) -> int:
    """Run a command, and tell what the user can put right in a line, without a traceback.

    Args:
        command: What the line begins with.
        run: The command.

    Returns:
        What it returns, 0 for nothing; 2 for an error of values or files, 130 after Ctrl-C.
    """
    try:
        return run() or 0
    except FileExistsError as error:
        text = f"{error.filename!r} is a file where a folder is to be: choose another."
    except NotADirectoryError as error:
        text = f"a part of {error.filename!r} is a file where a folder is to be: choose another."
    except (ValueError, OSError) as error:
        text = str(error)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    print(f"{command}: {text}", file=sys.stderr)
    return 2


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


def natural(text: str) -> int:
    """Return a whole number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    # As seeds of torch go.
    if number >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2^63, got {text}")
    return number


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number
