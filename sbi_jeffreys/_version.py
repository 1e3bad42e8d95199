"""Version of the package and of the files that it saves."""

__all__ = ["__version__"]

__version__ = "0.1.0"
