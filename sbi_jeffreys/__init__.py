"""Amortised Bayesian inference with the adaptively symmetrised Jeffreys divergence."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .density import JeffreysDensity
    from .persistence import load, save
    from .plotting import plot_training
    from .posterior_plots import plot_posteriors
    from .trainer import JeffreysNPE

__all__ = [
    "JeffreysDensity",
    "JeffreysNPE",
    "__version__",
    "load",
    "plot_posteriors",
    "plot_training",
    "save",
]

# Imported when they are asked for: sbi and seaborn take seconds, and `sbi-jeffreys --help` needs
# neither.
_HOMES = {
    "JeffreysDensity": "density",
    "JeffreysNPE": "trainer",
    "load": "persistence",
    "plot_posteriors": "posterior_plots",
    "plot_training": "plotting",
    "save": "persistence",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
