r"""Gaussian linear uniform: the mean of a Gaussian under a uniform prior.

Prior and simulator, for :math:`\theta, x \in \mathbb{R}^{10}`:

.. math:: \theta \sim \mathcal{U}([-1, 1]^{10}), \qquad x \sim \mathcal{N}(\theta, 0.1\, I)

Likelihood: :math:`p(x \mid \theta) = \mathcal{N}(x; \theta, 0.1\, I)`, where 0.1 is a variance.

Posterior, in closed form: independent :math:`\mathcal{N}(x_j, 0.1)` truncated to :math:`[-1, 1]`.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.2,
    https://arxiv.org/abs/2101.04653
"""

import math

import numpy as np
import torch
from sbi.utils import BoxUniform
from scipy.stats import truncnorm

from .gaussian_linear import VARIANCE, GaussianLinear

__all__ = ["GaussianLinearUniform"]

# The largest float32 below the upper bound, where the density is zero.
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


class GaussianLinearUniform(GaussianLinear):
    """Gaussian linear with another prior; see the module for the formulas."""

    name = "gaussian_linear_uniform"

    def __init__(self) -> None:
        self.prior = BoxUniform(-torch.ones(10), torch.ones(10))

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        std = math.sqrt(VARIANCE)
        low, high = (-1 - x) / std, (1 - x) / std
        theta = truncnorm.rvs(low, high, x, std, size=(n, 10), random_state=rng)
        return np.clip(theta, -1.0, BELOW_ONE)
