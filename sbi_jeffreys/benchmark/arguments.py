"""Types of arguments that several commands take."""

import argparse

__all__ = ["natural", "positive"]


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
