"""Amortised Bayesian inference with the adaptively symmetrised Jeffreys divergence."""

from ._version import __version__

__all__ = ["__version__"]
