r"""Lotka-Volterra: prey and predators.

Prior, for the four rates :math:`\theta = (\alpha, \beta, \gamma, \delta)`, per unit of time:

.. math::
    \alpha, \gamma \sim \text{LogNormal}(-0.125, 0.5), \qquad
    \beta, \delta \sim \text{LogNormal}(-3, 0.5)

Simulator, with :math:`X(0) = 30` prey and :math:`Y(0) = 1` predators, at :math:`t_k = 0, 2.1, 4.2,
\dots, 18.9`:

.. math::
    \dot X = \alpha X - \beta X Y, \qquad \dot Y = \delta X Y - \gamma Y, \qquad
    x_k \sim \text{LogNormal}(\log X(t_k), 0.1), \qquad
    x_{10 + k} \sim \text{LogNormal}(\log Y(t_k), 0.1)

The two populations are kept within :math:`[10^{-10}, 10^4]` before the noise.

Likelihood: the product of the twenty log-normal densities. The equations are solved for
:math:`\log X` and :math:`\log Y` in float64; the solution is within :math:`10^{-5}` of SciPy's at a
tolerance of :math:`10^{-12}` (docs/tasks.md).

Posterior: for :math:`\log \theta`, by rejection under a fitted envelope (:mod:`.envelope`).

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.10,
    https://arxiv.org/abs/2101.04653
"""

import math

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Independent, LogNormal

from .base import Task
from .envelope import sample_log_normal_posterior
from .ode import solve_ode

__all__ = ["LotkaVolterra"]

START = (30.0, 1.0)
TIMES = tuple(2.1 * k for k in range(10))
LOG_MEAN = (-0.125, -3.0, -0.125, -3.0)
LOG_STD = (0.5, 0.5, 0.5, 0.5)
NOISE = 0.1
SMALLEST, LARGEST = 1e-10, 1e4


class LotkaVolterra(Task):
    """Four rates, ten sizes of either population; see the module for the formulas."""

    name = "lotka_volterra"
    dim_theta = 4
    dim_x = 20

    def __init__(self) -> None:
        self.prior = Independent(LogNormal(torch.tensor(LOG_MEAN), torch.tensor(LOG_STD)), 1)

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        mean = log_populations(theta)
        z = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + NOISE * z).exp()

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        possible = x > 0
        log_x = torch.where(possible, x, 1.0).double().log()
        z = (log_x - log_populations(theta)) / NOISE
        log_p = -0.5 * z**2 - math.log(math.sqrt(2 * math.pi) * NOISE) - log_x
        return torch.where(possible, log_p, -torch.inf).sum(dim=1).to(theta.dtype)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        data = torch.from_numpy(x)[None]
        return sample_log_normal_posterior(
            lambda theta: self._log_likelihood(theta, data), LOG_MEAN, LOG_STD, n, rng
        )


def log_populations(theta: Tensor) -> Tensor:
    r"""The logarithms of both populations at the ten times.

    Args:
        theta: the rates :math:`\alpha, \beta, \gamma, \delta > 0`, of shape ``(n, 4)``.

    Returns:
        First :math:`\log X(t_k)`, then :math:`\log Y(t_k)`, float64, of shape ``(n, 20)``.
    """

    def f(y: Tensor, theta: Tensor) -> Tensor:
        alpha, beta, gamma, delta = theta.T
        x_size, y_size = y.exp().T
        return torch.stack((alpha - beta * y_size, delta * x_size - gamma), dim=1)

    theta = theta.double()
    start = torch.log(theta.new_tensor(START)).expand(len(theta), 2)
    states = solve_ode(f, start, theta, TIMES).mT.flatten(1)
    return states.clamp(math.log(SMALLEST), math.log(LARGEST))
