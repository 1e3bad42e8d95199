r"""SLCP among distractors: the data of :mod:`.slcp` hidden between uninformative components.

Prior and parameters are those of SLCP. Simulator, with :math:`x^* \in \mathbb{R}^8` from SLCP and a
fixed permutation :math:`\pi` of the 100 components:

.. math::
    x = (x^*, \xi)_\pi, \qquad
    \xi \sim \frac{1}{20} \sum_{k=1}^{20} t_2(\mu_k, A_k A_k^\top) \ \text{on } \mathbb{R}^{92}

Likelihood: :math:`p(x \mid \theta) = p(x^* \mid \theta)\, p(\xi)`. The second factor does not
depend on :math:`\theta`, so the posterior is that of SLCP at :math:`x^*`. ``log_likelihood``
returns the first factor only: the :math:`A_k` are random triangular matrices with condition numbers
of :math:`10^{12}` to :math:`10^{19}`, so that the rounding of :math:`x` to float32 would decide the
value of :math:`p(\xi)`.

The constants :math:`\mu_k, A_k, \pi` are draws of ``numpy.random.RandomState(42)``, whose stream
NumPy has frozen, and are drawn again here: the permutation is that of sbibm's file exactly and the
others agree within 4e-15.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.4,
    https://arxiv.org/abs/2101.04653
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from .slcp import SLCP

__all__ = ["SLCPDistractors"]

COMPONENTS = 20
DEGREES = 2
NOISE = 92


class SLCPDistractors(SLCP):
    """Five parameters, a hundred data; see the module for the formulas."""

    name = "slcp_distractors"
    dim_x = 100

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        n, device, dtype = len(theta), theta.device, theta.dtype
        constants = _constants()
        informative = super()._simulate(theta, generator)
        k = torch.randint(COMPONENTS, (n,), generator=generator, device=device)
        z = torch.randn((n, NOISE), generator=generator, device=device, dtype=dtype)
        # Student's t: a Gaussian over the root of an independent mean of DEGREES squares.
        g = torch.randn((n, DEGREES), generator=generator, device=device, dtype=dtype)
        z = z / (g**2).mean(dim=1, keepdim=True).sqrt()
        noise = constants.location.to(theta)[k]
        factor = constants.factor.to(theta)
        # One product per component: a factor gathered for each row would take 34 kB a row.
        for j in range(COMPONENTS):
            noise = noise + torch.where((k == j)[:, None], z, 0.0) @ factor[j].T
        return torch.cat((informative, noise), dim=1)[:, constants.permutation.to(device)]

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        x = x[:, _constants().permutation.argsort().to(x.device)]
        return super()._log_likelihood(theta, x[:, :8])

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        informative = x[_constants().permutation.argsort().numpy()][:8]
        return super()._sample_reference(informative, n, rng)


class _Constants(NamedTuple):
    """μ ``(20, 92)``, A ``(20, 92, 92)`` in float64, and the permutation ``(100,)``."""

    location: Tensor
    factor: Tensor
    permutation: Tensor


@cache
def _constants() -> _Constants:
    rng = np.random.RandomState(42)
    location = 15 * rng.normal(size=(COMPONENTS, NOISE))
    factor = np.empty((COMPONENTS, NOISE, NOISE))
    for j in range(COMPONENTS):
        factor[j] = np.tril(rng.normal(size=(NOISE, NOISE)))
        factor[j] += np.diag(np.exp(rng.normal(size=NOISE)))
    permutation = rng.permutation(8 + NOISE)
    return _Constants(
        torch.from_numpy(location), torch.from_numpy(3 * factor), torch.from_numpy(permutation)
    )
