"""Where a likelihood of Gaussians starts: what follows from the simulations in closed form."""

import numpy as np
import torch
from torch import Tensor

from ..features.regression import ridge_regression, shrunk_cholesky
from ..features.scales import cut_outliers

__all__ = ["linear_likelihood", "num_gaussians", "steps_of"]

# Gaussians by default: parameters to spend for each theta, and the fewest and most Gaussians. With
# few columns more of them cost nothing; with many, three are hard enough to learn.
_NUMBERS, _FEWEST, _MOST = 120, 3, 8
# How far from whole numbers the ratios of distances may be, relative to them.
_ROUNDING = 1e-5


def num_gaussians(size: int) -> int:
    """Return how many Gaussians to take, each of which has ``size`` parameters."""
    return max(_FEWEST, min(_MOST, round(_NUMBERS / size)))


def steps_of(context: Tensor) -> Tensor:
    """Return the step of each column of data (n, c) that come in steps, zero for the others."""
    gaps = torch.zeros_like(context[0])
    for i, column in enumerate(context.T):
        values, counts = column[column.isfinite()].unique(return_counts=True)
        if len(values) < 2:
            continue
        apart, repeated = values.diff(), counts > 1
        # Continuous data hardly ever repeat themselves; censored ones do at one value only. Of
        # counts, the large ones may each be there once.
        if counts.double().median() >= 2 or (repeated.sum() >= 2 and _are_multiples(apart)):
            gaps[i] = _usual(apart, torch.minimum(counts[1:], counts[:-1]))
    return gaps


def _usual(apart: Tensor, counts: Tensor) -> Tensor:
    """Return the median distance, each counted so many times."""
    ordered, order = apart.sort()
    shares = counts[order].cumsum(dim=0) / counts.sum()
    return ordered[(shares >= 0.5).to(torch.uint8).argmax()]


def _are_multiples(apart: Tensor) -> bool:
    """Whether distances are multiples of the smallest one."""
    ratios = apart / apart.min()
    return bool(((ratios - ratios.round()).abs() <= _ROUNDING * ratios).all())


def linear_likelihood(theta: Tensor, context: Tensor) -> dict[str, np.ndarray]:
    """Return the Gaussian of the data given standardised parameters, in whitened coordinates."""
    t, c = theta.double().numpy(), cut_outliers(context).double().numpy()
    finite = np.isfinite(c).all(axis=1)
    t, c = t[finite], c[finite]
    d, num = theta.shape[1], context.shape[1]
    slope, intercept, L = np.zeros((num, d)), np.zeros(num), np.eye(num)
    if len(c) > 2:
        slope, intercept, residuals = ridge_regression(t, c)
        L = shrunk_cholesky(residuals, np.ones(num))
    # The marginal: what the parameters spread, and the noise.
    spread = np.cov(t.T).reshape(d, d) if len(c) > 2 else np.eye(d)
    M = np.linalg.cholesky(slope @ spread @ slope.T + L @ L.T)
    W, V = np.linalg.inv(L), np.linalg.inv(M)
    return {
        "whitening": W,
        "slope": W @ slope,
        "intercept": W @ intercept,
        "marginal_whitening": V,
        "marginal_intercept": V @ intercept,
        "log_ratio": np.log(np.diag(M)).sum() - np.log(np.diag(L)).sum(),
    }
