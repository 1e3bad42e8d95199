r"""Gaussian mixture: the common mean of a wide and a narrow Gaussian.

Prior and simulator, for :math:`\theta, x \in \mathbb{R}^2`:

.. math::
    \theta \sim \mathcal{U}([-10, 10]^2), \qquad
    x \sim \tfrac12 \mathcal{N}(\theta, I) + \tfrac12 \mathcal{N}(\theta, 0.1^2 I)

Likelihood: the same mixture; both components of :math:`x` share the mixture's choice.

Posterior: the mixture is symmetric in :math:`x` and :math:`\theta`, so draws of the mixture about
:math:`x`, rejected outside the prior's box, are exact.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.7,
    https://arxiv.org/abs/2101.04653
"""

import math

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Generator, Tensor

from .base import Task
from .rejection import inside_box, sample_by_rejection

__all__ = ["GaussianMixture"]

BOUND = 10.0
WIDE, NARROW = 1.0, 0.1


class GaussianMixture(Task):
    """Two parameters, two data; see the module for the formulas."""

    name = "gaussian_mixture"
    dim_theta = 2
    dim_x = 2

    def __init__(self) -> None:
        self.prior = BoxUniform(torch.full((2,), -BOUND), torch.full((2,), BOUND))

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        n, device, dtype = len(theta), theta.device, theta.dtype
        u = torch.rand((n, 1), generator=generator, device=device, dtype=dtype)
        z = torch.randn((n, 2), generator=generator, device=device, dtype=dtype)
        return theta + torch.where(u < 0.5, WIDE, NARROW) * z

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        square = ((x - theta) ** 2).sum(dim=1)
        wide, narrow = (
            -0.5 * square / scale**2 - math.log(2 * 2 * math.pi * scale**2)
            for scale in (WIDE, NARROW)
        )
        return torch.logaddexp(wide, narrow)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        def propose(m: int) -> np.ndarray:
            scale = rng.choice((WIDE, NARROW), (m, 1))
            theta = rng.normal(x, scale, (m, 2))
            return theta[inside_box(theta, -BOUND, BOUND)]

        return sample_by_rejection(propose, n)

    def modes(self, theta: Tensor) -> Tensor:
        r"""Labels every parameter 0, for the posterior has a single mode.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, 2)``.

        Returns:
            Zeros, of type int64 and shape ``(n,)``.

        Raises:
            ValueError: if theta has another shape.
        """
        return torch.zeros(len(self._check_theta(theta)), dtype=torch.int64, device=theta.device)
