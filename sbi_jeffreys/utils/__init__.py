"""Checks of what users bring, seeds, warnings and files."""
