"""Amortised Bayesian inference with the adaptively symmetrised Jeffreys divergence."""

from typing import Any

from ._version import __version__
from .persistence import load, save
from .trainer import JeffreysNPE

__all__ = ["JeffreysNPE", "__version__", "load", "plot_posteriors", "plot_training", "save"]


def __getattr__(name: str) -> Any:
    # Figures need seaborn, which takes as long to import as everything else.
    if name in ("plot_posteriors", "plot_training"):
        from . import plotting

        return getattr(plotting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
