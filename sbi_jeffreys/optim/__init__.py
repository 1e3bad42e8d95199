"""Optimizers and averages of weights, for any module."""
