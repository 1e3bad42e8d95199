"""The report of a benchmark: `sbi-jeffreys bench report DIR`."""

from .write import write_report

__all__ = ["write_report"]
