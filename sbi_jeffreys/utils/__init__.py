"""Checks of arguments, seeds, warnings, losses of held-out rows, and files."""
