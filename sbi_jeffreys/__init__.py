"""Amortised Bayesian inference with the adaptively symmetrised Jeffreys divergence."""

from ._version import __version__
from .trainer import JeffreysNPE

__all__ = ["JeffreysNPE", "__version__"]
