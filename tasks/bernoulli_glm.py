r"""Bernoulli GLM: a neuron that spikes in response to white noise.

Prior, for an offset :math:`\theta_1` and a filter :math:`(\theta_2, \dots, \theta_{10})`:

.. math::
    \theta_1 \sim \mathcal{N}(0, 2), \qquad
    (\theta_2, \dots, \theta_{10}) \sim \mathcal{N}(0, (F^\top F)^{-1}), \qquad
    F = D^2 + \operatorname{diag}(\sqrt{0 / 9}, \sqrt{1 / 9}, \dots, \sqrt{8 / 9}) ,

where :math:`D` has ones on the diagonal and minus ones below it, so that :math:`D^2` takes second
differences and the filter is smooth.

Simulator, at times :math:`t = 1, \dots, 100` with the rows :math:`v_t` of a fixed design matrix
:math:`V = (1, I_t, I_{t-1}, \dots, I_{t-8})` of the stimulus :math:`I`:

.. math:: y_t \sim \text{Bernoulli}(\sigma(v_t^\top \theta))

The data are the spikes :math:`x = y \in \{0, 1\}^{100}` in ``bernoulli_glm_raw`` and the sufficient
statistics :math:`x = V^\top y \in \mathbb{R}^{10}`, the number of spikes and the sums of the
stimulus before them, in ``bernoulli_glm``.

Likelihood, in both cases (almost surely no two spike trains share their statistics):

.. math:: \log p(x \mid \theta) = \theta^\top V^\top y - \sum_t \log(1 + \exp(v_t^\top \theta))

Posterior: log-concave, drawn by rejection under a fitted envelope (:mod:`.envelope`).

The stimulus is a draw of ``numpy.random.RandomState(42)``, whose stream NumPy has frozen, and
equals that of sbibm's file exactly.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), tasks T.5 and T.6,
    https://arxiv.org/abs/2101.04653
"""

from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

from .base import Task
from .envelope import sample_by_envelope

__all__ = ["BernoulliGLM", "BernoulliGLMRaw"]

TIMES = 100
FILTER = 9


class BernoulliGLM(Task):
    """Ten parameters, ten sufficient statistics; see the module for the formulas."""

    name = "bernoulli_glm"
    dim_theta = 1 + FILTER
    dim_x = 1 + FILTER

    def __init__(self) -> None:
        precision = torch.from_numpy(_prior_precision()).float()
        self.prior = MultivariateNormal(torch.zeros(1 + FILTER), precision_matrix=precision)

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        return _spikes(theta, generator) @ torch.from_numpy(_design()).to(theta)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        psi = theta @ torch.from_numpy(_design()).to(theta).T
        return (theta * x).sum(dim=1) - softplus(psi).sum(dim=1)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        design, precision = _design(), _prior_precision()

        def log_density(theta: np.ndarray) -> np.ndarray:
            log_likelihood = theta @ x - np.logaddexp(0, theta @ design.T).sum(axis=1)
            return log_likelihood - 0.5 * ((theta @ precision) * theta).sum(axis=1)

        covariance = np.linalg.inv(precision)
        return sample_by_envelope(log_density, np.zeros(len(x)), covariance, n, rng)


class BernoulliGLMRaw(BernoulliGLM):
    """Ten parameters, a hundred spikes; see the module for the formulas."""

    name = "bernoulli_glm_raw"
    dim_x = TIMES

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        return _spikes(theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return super()._log_likelihood(theta, x @ torch.from_numpy(_design()).to(theta))

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        return super()._sample_reference(x @ _design(), n, rng)


@cache
def _design() -> np.ndarray:
    """The design matrix V, of shape ``(100, 10)``, in float64."""
    stimulus = np.random.RandomState(42).randn(TIMES).astype(np.float32)
    design = np.zeros((TIMES, 1 + FILTER))
    design[:, 0] = 1
    for lag in range(FILTER):
        design[lag:, 1 + lag] = stimulus[: TIMES - lag]
    return design


def _prior_precision() -> np.ndarray:
    """The prior's precision matrix, of shape ``(10, 10)``, in float64."""
    d = np.eye(FILTER) - np.eye(FILTER, k=-1)
    f = d @ d + np.diag(np.sqrt(np.arange(FILTER) / FILTER))
    precision = np.zeros((1 + FILTER, 1 + FILTER))
    precision[0, 0] = 0.5
    precision[1:, 1:] = f.T @ f
    return precision


def _spikes(theta: Tensor, generator: Generator | None) -> Tensor:
    """The spikes y, zeros and ones of shape ``(n, 100)``."""
    p = (theta @ torch.from_numpy(_design()).to(theta).T).sigmoid()
    u = torch.rand(p.shape, generator=generator, device=theta.device, dtype=theta.dtype)
    return (u < p).to(theta)
