r"""Simple likelihood, complex posterior: four points of a Gaussian in the plane.

Prior, for :math:`\theta \in \mathbb{R}^5`:

.. math:: \theta \sim \mathcal{U}([-3, 3]^5)

Simulator, for :math:`x = (x_1, \dots, x_4)` with :math:`x_k \in \mathbb{R}^2`:

.. math::
    x_k &\sim \mathcal{N}(m, \Sigma), \qquad m = (\theta_1, \theta_2), \qquad
    \Sigma = \begin{pmatrix} s_1^2 & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 \end{pmatrix} \\
    s_1 &= \theta_3^2, \qquad s_2 = \theta_4^2, \qquad \rho = \tanh \theta_5

Likelihood: :math:`p(x \mid \theta) = \prod_{k=1}^4 \mathcal{N}(x_k; m, \Sigma)`.

Posterior: with the mean :math:`\bar x` and the scatter :math:`S = \sum_k (x_k - \bar x)(x_k - \bar
x)^\top`,

.. math::
    p(x \mid \theta) \propto |\Sigma|^{-2}
        \exp\left(-\tfrac12 \operatorname{tr} \Sigma^{-1} S\right)
        \exp\left(-2 (m - \bar x)^\top \Sigma^{-1} (m - \bar x)\right) ,

so that :math:`m \sim \mathcal{N}(\bar x, \Sigma / 4)` given :math:`\Sigma`, and integrating it out
leaves :math:`|\Sigma|^{-3/2} \exp(-\frac12 \operatorname{tr} \Sigma^{-1} S)` as the density of
:math:`(\theta_3, \theta_4, \theta_5)`. The map to :math:`\Sigma` has the Jacobian
:math:`16 |\theta_3 \theta_4|^5 (1 - \rho^2)` and :math:`|\Sigma| = (\theta_3 \theta_4)^4 (1 -
\rho^2)`, hence

.. math::
    p(\Sigma \mid x) \propto |\Sigma|^{-11/4} \exp\left(-\tfrac12 \operatorname{tr} \Sigma^{-1} S
        \right) (1 - \rho^2)^{1/4} .

The first two factors are the inverse Wishart density with scale :math:`S` and :math:`\nu = 5/2`
degrees of freedom, since :math:`(\nu + 2 + 1) / 2 = 11 / 4`; the last one, below one, is a
probability of acceptance. What falls outside the box, mean included, is rejected, which is the
exact truncation, and the signs of :math:`\theta_3` and :math:`\theta_4` are fair coins. No Markov
chain is run.

sbibm adds :math:`10^{-6}` to both variances before it factorises :math:`\Sigma`. The factor is
written down here, so there is nothing to guard; the difference is felt where a standard deviation
is near :math:`10^{-3}`, i.e. :math:`|\theta_3|` or :math:`|\theta_4|` near 0.03.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021), task T.3,
    https://arxiv.org/abs/2101.04653

    Sequential Neural Likelihood (Papamakarios et al., 2019), appendix A.1,
    https://arxiv.org/abs/1805.07226
"""

import math

import numpy as np
import torch
from sbi.utils import BoxUniform
from torch import Generator, Tensor

from .base import Task
from .rejection import inside_box, sample_by_rejection

__all__ = ["SLCP"]

BOUND = 3.0
DEGREES = 2.5
# Standard deviations are kept from zero, a set of measure zero where the density has no value.
MIN_STD = 1e-12


class SLCP(Task):
    """Five parameters, four points in the plane; see the module for the formulas."""

    name = "slcp"
    dim_theta = 5
    dim_x = 8

    def __init__(self) -> None:
        self.prior = BoxUniform(torch.full((5,), -BOUND), torch.full((5,), BOUND))

    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        m1, m2, s1, s2, rho, tau = _moments(theta)
        z = torch.randn(
            (len(theta), 4, 2), generator=generator, device=theta.device, dtype=theta.dtype
        )
        x1 = m1 + s1 * z[..., 0]
        x2 = m2 + s2 * (rho * z[..., 0] + tau * z[..., 1])
        return torch.stack((x1, x2), dim=-1).flatten(1)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        m1, m2, s1, s2, rho, tau = _moments(theta)
        x1, x2 = x.reshape(-1, 4, 2).unbind(dim=-1)
        z1 = (x1 - m1) / s1
        z2 = ((x2 - m2) / s2 - rho * z1) / tau
        log_det = (s1 * s2 * tau).log()
        return (-0.5 * (z1**2 + z2**2) - log_det - math.log(2 * math.pi)).sum(dim=1)

    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        points = x.reshape(4, 2)
        mean = points.mean(axis=0)
        scatter = (points - mean).T @ (points - mean)
        try:
            g = np.linalg.cholesky(scatter)
        except np.linalg.LinAlgError:
            raise RuntimeError(
                "the four points of this observation lie on one line: its posterior is no density "
                "that the sampler could draw from"
            ) from None
        return sample_by_rejection(lambda m: _propose(m, mean, g, rng), n)

    def modes(self, theta: Tensor) -> Tensor:
        r"""Labels the four modes by the signs of :math:`\theta_3` and :math:`\theta_4`.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, 5)``.

        Returns:
            Labels :math:`2 \cdot 1[\theta_3 > 0] + 1[\theta_4 > 0]`, of type int64 and shape
            ``(n,)``.

        Raises:
            ValueError: if theta has another shape.
        """
        positive = (self._check_theta(theta)[:, 2:4] > 0).long()
        return 2 * positive[:, 0] + positive[:, 1]


def _moments(theta: Tensor) -> tuple[Tensor, ...]:
    """The columns m₁, m₂, s₁, s₂, ρ and √(1 − ρ²), each of shape ``(n, 1)``."""
    m1, m2, theta3, theta4, theta5 = theta.split(1, dim=1)
    s1, s2 = (theta3**2).clamp(min=MIN_STD), (theta4**2).clamp(min=MIN_STD)
    # 1 / cosh is √(1 − tanh²) without the cancellation.
    return m1, m2, s1, s2, theta5.tanh(), 1 / theta5.cosh()


def _propose(m: int, mean: np.ndarray, g: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Proposes m draws for the scatter S = G Gᵀ and returns those accepted, ``(k, 5)``."""
    # Bartlett: A Aᵀ ~ Wishart(ν, I) for A = ((a, 0), (b, c)), thus Σ = H Hᵀ with H = G A⁻ᵀ is
    # inverse Wishart with scale S.
    a = np.sqrt(rng.chisquare(DEGREES, m))
    c = np.sqrt(rng.chisquare(DEGREES - 1, m))
    b = rng.standard_normal(m)
    h = np.einsum("ij,jkm->mik", g, np.array([[1 / a, -b / (a * c)], [np.zeros(m), 1 / c]]))
    s1, s2 = np.linalg.norm(h, axis=2).T
    rho = (h[:, 0] * h[:, 1]).sum(axis=1) / (s1 * s2)
    # |det H| = s₁ s₂ √(1 − ρ²)
    tau = np.abs(g[0, 0] * g[1, 1]) / (a * c * s1 * s2)
    keep = (rng.random(m) < np.sqrt(tau)) & (np.maximum(s1, s2) < BOUND**2)

    h, s1, s2, rho = h[keep], s1[keep], s2[keep], rho[keep]
    location = mean + 0.5 * np.einsum("mij,mj->mi", h, rng.standard_normal((len(h), 2)))
    signs = rng.choice((-1.0, 1.0), (2, len(h)))
    # asinh(ρ / √(1 − ρ²)) = atanh ρ without the loss of digits near ±1.
    theta5 = np.arcsinh(rho / tau[keep])
    theta = np.column_stack((location, signs[0] * np.sqrt(s1), signs[1] * np.sqrt(s2), theta5))
    return theta[inside_box(theta, -BOUND, BOUND)]
