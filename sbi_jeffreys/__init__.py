"""Amortised Bayesian inference with the adaptively symmetrised Jeffreys divergence."""

from ._version import __version__
from .persistence import load, save
from .trainer import JeffreysNPE

__all__ = ["JeffreysNPE", "__version__", "load", "save"]
