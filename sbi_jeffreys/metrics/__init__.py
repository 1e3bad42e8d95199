"""Distances between posteriors, calibration, and leakage: one metric in each module."""

from .c2st import c2st
from .coverage import Coverage, coverage
from .divergences_to_truth import DivergencesToTruth, Estimate, divergences_to_truth
from .leakage import leakage
from .mmd import mmd2
from .mode_mass import ModeMassError, mode_mass_error
from .sliced_wasserstein import sliced_wasserstein

__all__ = [
    "Coverage",
    "DivergencesToTruth",
    "Estimate",
    "ModeMassError",
    "c2st",
    "coverage",
    "divergences_to_truth",
    "leakage",
    "mmd2",
    "mode_mass_error",
    "sliced_wasserstein",
]
