"""Estimators and distributions as JSON and tensors, for :mod:`sbi_jeffreys.persistence`."""
