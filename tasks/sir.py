r"""SIR: an epidemic with susceptible, infectious and recovered people.

Prior, for the rates :math:`\theta = (\beta, \gamma)` of contact and recovery, per day:

.. math::
    \beta \sim \text{LogNormal}(\log 0.4, 0.5), \qquad
    \gamma \sim \text{LogNormal}(\log 0.125, 0.2)

Simulator, for a population of :math:`N = 10^6` with one infectious person at time zero and
:math:`t_k = 0, 17, 34, \dots, 153` days:

.. math::
    \dot S = -\beta S I / N, \qquad \dot I = \beta S I / N - \gamma I, \qquad
    x_k \sim \text{Binomial}(1000, I(t_k) / N)

Likelihood: the product of the ten binomial probabilities. The equations are solved for :math:`\log
S` and :math:`\log I`, which stay finite when an epidemic has died out, in float64; the solution is
within :math:`10^{-5}` of SciPy's at a tolerance of :math:`10^{-10}` (docs/tasks.md).

Posterior: for :math:`\log \theta`, by rejection under a fitted envelope (:mod:`.envelope`).

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.9,
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

__all__ = ["SIR"]

POPULATION = 1e6
TRIALS = 1000
TIMES = tuple(range(0, 161, 17))
LOG_MEAN = (math.log(0.4), math.log(0.125))
LOG_STD = (0.5, 0.2)


class SIR(Task):
    """Two rates, ten counts; see the module for the formulas."""

    name = "sir"
    dim_theta = 2
    dim_x = 10

    def __init__(self) -> None:
        self.prior = Independent(LogNormal(torch.tensor(LOG_MEAN), torch.tensor(LOG_STD)), 1)

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        p = infectious(theta).exp().clamp(max=1.0)
        return torch.binomial(torch.full_like(p, TRIALS), p, generator=generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        x, log_p = x.double(), infectious(theta)
        # log(1 − p) by expm1 keeps its digits where p is small; p = 1 is never reached.
        log_q = (-torch.expm1(log_p)).log()
        count = torch.lgamma(x + 1) + torch.lgamma(TRIALS - x + 1)
        log_binomial = math.lgamma(TRIALS + 1) - count + x * log_p + (TRIALS - x) * log_q
        return log_binomial.sum(dim=1).to(theta.dtype)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        data = torch.from_numpy(x)[None]
        return sample_log_normal_posterior(
            lambda theta: self._log_likelihood(theta, data), LOG_MEAN, LOG_STD, n, rng
        )


def infectious(theta: Tensor) -> Tensor:
    r"""The log-share :math:`\log I(t_k) / N` of infectious people.

    Args:
        theta: the rates :math:`\beta, \gamma > 0` per day, of shape ``(n, 2)``.

    Returns:
        Log-shares, float64, of shape ``(n, 10)``.
    """

    def f(y: Tensor, theta: Tensor) -> Tensor:
        pressure = theta[:, 0] * y.exp().T
        return torch.stack((-pressure[1], pressure[0] - theta[:, 1]), dim=1)

    theta = theta.double()
    # Shares of the population, as logarithms.
    start = torch.log(theta.new_tensor([1 - 1 / POPULATION, 1 / POPULATION]))
    return solve_ode(f, start.expand(len(theta), 2), theta, TIMES)[..., 1]
