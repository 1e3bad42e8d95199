r"""Two moons: a posterior with two modes, each a crescent.

Prior, for :math:`\theta \in \mathbb{R}^2`:

.. math:: \theta \sim \mathcal{U}([-1, 1]^2)

Simulator:

.. math::
    x &= m(\theta) + \begin{pmatrix} r \cos a + 0.25 \\ r \sin a \end{pmatrix}, \qquad
    m(\theta) = \frac{1}{\sqrt 2}
        \begin{pmatrix} -|\theta_1 + \theta_2| \\ -\theta_1 + \theta_2 \end{pmatrix} \\
    a &\sim \mathcal{U}(-\pi / 2, \pi / 2), \qquad r \sim \mathcal{N}(0.1, 0.01^2)

Likelihood, with :math:`u = x - m(\theta) - (0.25, 0)` in polar coordinates :math:`(r, a)`, whose
Jacobian is :math:`1 / r`:

.. math:: p(x \mid \theta) = \frac{\mathcal{N}(r; 0.1, 0.01^2)}{\pi r} \, 1[u_1 > 0]

The radius is negative with probability :math:`10^{-23}`, which the formula leaves out.

Posterior: :math:`\theta \mapsto (z_1, z_2) = (\theta_1 + \theta_2, -\theta_1 + \theta_2) / \sqrt 2`
is a rotation, and in :math:`z` the data are the noise minus or plus :math:`z`. A draw of the noise
therefore gives a posterior draw of :math:`(|z_1|, z_2)`, provided that :math:`|z_1|` comes out
non-negative; the sign of :math:`z_1` is a fair coin; draws outside the prior's box are rejected.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.8,
    https://arxiv.org/abs/2101.04653
"""

import math

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Generator, Tensor

from .base import Task
from .rejection import inside_box, sample_by_rejection

__all__ = ["TwoMoons"]

MEAN_RADIUS = 0.1
STD_RADIUS = 0.01
OFFSET = 0.25


class TwoMoons(Task):
    """Two parameters, two data; see the module for the formulas."""

    name = "two_moons"
    dim_theta = 2
    dim_x = 2

    def __init__(self) -> None:
        self.prior = BoxUniform(-torch.ones(2), torch.ones(2))

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        n, device, dtype = len(theta), theta.device, theta.dtype
        u = torch.rand(n, generator=generator, device=device, dtype=dtype)
        z = torch.randn(n, generator=generator, device=device, dtype=dtype)
        a, r = math.pi * (u - 0.5), MEAN_RADIUS + STD_RADIUS * z
        return _center(theta) + torch.stack((r * a.cos() + OFFSET, r * a.sin()), dim=1)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        u1, u2 = (x - _center(theta)).unbind(dim=1)
        u1 = u1 - OFFSET
        # The norm has no derivative at zero, which lies outside the support.
        r = torch.hypot(torch.where(u1 > 0, u1, 1.0), u2)
        log_p = (
            -0.5 * ((r - MEAN_RADIUS) / STD_RADIUS) ** 2
            - math.log(math.sqrt(2 * math.pi) * STD_RADIUS)
            - math.log(math.pi)
            - r.log()
        )
        return torch.where(u1 > 0, log_p, -torch.inf)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        def propose(m: int) -> np.ndarray:
            a = rng.uniform(-math.pi / 2, math.pi / 2, m)
            r = rng.normal(MEAN_RADIUS, STD_RADIUS, m)
            z1 = r * np.cos(a) + OFFSET - x[0]
            z2 = x[1] - r * np.sin(a)
            s = rng.choice((-1.0, 1.0), m) * z1
            theta = np.stack((s - z2, s + z2), axis=1) / math.sqrt(2)
            return theta[(z1 >= 0) & inside_box(theta, -1.0, 1.0)]

        return sample_by_rejection(propose, n)

    def modes(self, theta: Tensor) -> Tensor:
        r"""Labels the two crescents: 1 where :math:`\theta_1 + \theta_2 > 0`, else 0.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, 2)``.

        Returns:
            Labels 0 or 1, of type int64 and shape ``(n,)``.

        Raises:
            ValueError: if theta has another shape.
        """
        return (self._check_theta(theta).sum(dim=1) > 0).long()


def _center(theta: Tensor) -> Tensor:
    """The shift m(θ), of shape ``(n, 2)``."""
    theta1, theta2 = theta.unbind(dim=1)
    return torch.stack((-(theta1 + theta2).abs(), theta2 - theta1), dim=1) / math.sqrt(2)
