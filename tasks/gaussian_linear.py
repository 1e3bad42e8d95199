r"""Gaussian linear: the mean of a Gaussian under a Gaussian prior.

Prior and simulator, for :math:`\theta, x \in \mathbb{R}^{10}`:

.. math:: \theta \sim \mathcal{N}(0, 0.1\, I), \qquad x \sim \mathcal{N}(\theta, 0.1\, I)

Likelihood: :math:`p(x \mid \theta) = \mathcal{N}(x; \theta, 0.1\, I)`, where 0.1 is a variance.

Posterior, in closed form: :math:`\mathcal{N}(x / 2, 0.05\, I)`.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.1,
    https://arxiv.org/abs/2101.04653
"""

import math

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from .base import Task

__all__ = ["GaussianLinear"]

VARIANCE = 0.1


class GaussianLinear(Task):
    """Ten parameters, ten data; see the module for the formulas."""

    name = "gaussian_linear"
    dim_theta = 10
    dim_x = 10

    def __init__(self) -> None:
        self.prior = MultivariateNormal(torch.zeros(10), VARIANCE * torch.eye(10))

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        z = torch.randn(theta.shape, generator=generator, device=theta.device, dtype=theta.dtype)
        return theta + math.sqrt(VARIANCE) * z

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        log_p = -0.5 * (x - theta) ** 2 / VARIANCE - 0.5 * math.log(2 * math.pi * VARIANCE)
        return log_p.sum(dim=1)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(x / 2, math.sqrt(VARIANCE / 2), (n, 10))
