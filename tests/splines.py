"""Splines that tests go through: bins, scale of their parameters, bound and smallest slope."""

import pytest

__all__ = ["SETTINGS"]

SETTINGS = pytest.mark.parametrize(
    ("bins", "scale", "bound", "slope"),
    [
        (8, 0.1, 5.0, 1e-3),
        (8, 2.0, 5.0, 1e-3),
        (8, 30.0, 5.0, 1e-3),  # at the limits that squashing sets
        (2, 1.0, 5.0, 1e-3),
        (16, 1.0, 1.0, 1e-2),
        (5, 1.0, 20.0, 1e-4),
    ],
)
