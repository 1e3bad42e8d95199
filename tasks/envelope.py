r"""Independent draws from an unnormalised density by rejection under a fitted envelope.

For a density :math:`\pi(\phi) = p(\phi) L(\phi)` on :math:`\mathbb{R}^d` with a Gaussian prior
:math:`p` and a bounded likelihood :math:`L`, the ratio :math:`w = \pi / q` to any Student density
:math:`q` is bounded, since Gaussian tails are lighter. The envelope is a mixture with a common
centre, whose wide component meets skewed posteriors in their long tail,

.. math:: q = \tfrac45\, t_8(\mu, C) + \tfrac15\, t_8(\mu, 4^2 C) .

Two steps:

1. *Fit.* :math:`\mu` and :math:`C` begin at the prior's moments. In every round they become the
   moments of draws from :math:`t_8(\mu, C)` with weights :math:`w^\beta`, where the power
   :math:`\beta \le 1` is the largest that keeps the effective sample size above a tenth of the
   draws.
2. *Rejection.* Draws from the final :math:`q` are accepted where a uniform variate falls below
   :math:`w / M`, with :math:`M` 1.5 times the largest weight of all draws made so far. Every draw
   keeps its variate, so that a larger weight, when one appears, takes back what was accepted under
   a smaller :math:`M`. If fewer than one in fifty is accepted, :math:`\mu` and :math:`C` are fitted
   to all of these draws, tempered as before, and the step begins again.

The accepted draws are independent given :math:`M`. They would be exact if :math:`M` bounded all
weights; what an unseen peak could add is of the order of the largest weight over their sum, below
:math:`1 / n`.

References:
    Empirical supremum rejection sampling (Caffo et al., 2002),
    https://doi.org/10.1093/biomet/89.4.745
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import multivariate_t
from torch import Tensor

__all__ = ["sample_by_envelope", "sample_log_normal_posterior"]

LogDensity = Callable[[np.ndarray], np.ndarray]

DEGREES = 8.0
WIDE, SHARE = 4.0, 0.2
ROUND = 2_000
MAX_ROUNDS = 40
CUT = 6.0
FEW, REFITS = 0.02, 4
SLACK = 1.5


def sample_by_envelope(
    log_density: LogDensity,
    mean: np.ndarray,
    covariance: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draws independent samples from a density known up to its constant.

    Args:
        log_density: :math:`\log \pi` at points ``(m, d)``, of shape ``(m,)``.
        mean: the prior's mean, of shape ``(d,)``.
        covariance: the prior's covariance, of shape ``(d, d)``.
        n: the number of samples, positive.
        rng: source of randomness.

    Returns:
        Samples, of shape ``(n, d)``.

    Raises:
        RuntimeError: if no envelope fits, or if fewer than one draw in a thousand is accepted.
    """
    q = _fit(log_density, mean, covariance, rng)
    phi: np.ndarray = np.empty((0, len(mean)))
    log_w: np.ndarray = np.empty(0)
    log_u: np.ndarray = np.empty(0)
    batch, refits = max(2 * n, ROUND), REFITS
    while True:
        new_phi, log_q = q.draw(batch, rng)
        phi = np.concatenate((phi, new_phi))
        log_w = np.concatenate((log_w, log_density(new_phi) - log_q))
        log_u = np.concatenate((log_u, np.log(rng.random(batch))))
        kept = np.flatnonzero(log_u < log_w - (log_w.max() + np.log(SLACK)))
        if len(kept) >= n:
            return phi[kept[:n]]
        if len(kept) < FEW * len(phi) and refits > 0:
            # A heavy draw lies where the envelope is thin: cover it, then begin again.
            q, refits = _Envelope(*_moments(phi, _temper(log_w, ROUND / 10)[1])), refits - 1
            phi, log_w, log_u = phi[:0], log_w[:0], log_u[:0]
            continue
        if len(phi) > max(1_000 * n, MAX_ROUNDS * ROUND):
            raise RuntimeError(
                f"only {len(kept)} of {len(phi)} draws were accepted, {n} samples were asked for: "
                "the posterior at this observation is too far from one peak"
            )
        wanted = 1.2 * (n - len(kept)) * len(phi) / max(len(kept), 1)
        batch = int(np.clip(wanted, ROUND, 10 * ROUND))


def sample_log_normal_posterior(
    log_likelihood: Callable[[Tensor], Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draws independent samples from the posterior under independent log-normal priors.

    Parameters more than six prior standard deviations off, of prior probability 2e-9 each, are left
    out: the differential equations are costly there.

    Args:
        log_likelihood: the log-likelihood at parameters :math:`\theta` ``(m, d)``, of shape
            ``(m,)``.
        mean: the prior's mean of :math:`\log \theta`, of length d.
        std: the prior's standard deviations of :math:`\log \theta`, of length d.
        n: the number of samples, positive.
        rng: source of randomness.

    Returns:
        Samples :math:`\theta`, of shape ``(n, d)``.

    Raises:
        RuntimeError: as :func:`sample_by_envelope`.
    """
    center, scale = np.array(mean), np.array(std)

    def log_density(phi: np.ndarray) -> np.ndarray:
        z = (phi - center) / scale
        inside = (np.abs(z) < CUT).all(axis=1)
        value = np.full(len(phi), -np.inf)
        with torch.no_grad():
            value[inside] = log_likelihood(torch.from_numpy(np.exp(phi[inside]))).numpy()
        return value - 0.5 * (z**2).sum(axis=1)

    return np.exp(sample_by_envelope(log_density, center, np.diag(scale**2), n, rng))


class _Envelope:
    """The mixture q, with centre ``(d,)`` and matrix ``(d, d)``."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean = mean
        self.narrow = multivariate_t(mean, covariance, df=DEGREES)
        self.wide = multivariate_t(mean, WIDE**2 * covariance, df=DEGREES)

    def draw(self, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws ``(m, d)`` from the mixture and its log-density ``(m,)``."""
        phi = self._draw_narrow(m, rng)
        wide = rng.random((m, 1)) < SHARE
        phi = self.mean + np.where(wide, WIDE, 1.0) * (phi - self.mean)
        log_q = np.logaddexp(
            np.log1p(-SHARE) + self.narrow.logpdf(phi), np.log(SHARE) + self.wide.logpdf(phi)
        )
        return phi, log_q

    def draw_narrow(self, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws ``(m, d)`` from the narrow component and its log-density ``(m,)``."""
        phi = self._draw_narrow(m, rng)
        return phi, self.narrow.logpdf(phi)

    def _draw_narrow(self, m: int, rng: np.random.Generator) -> np.ndarray:
        return self.narrow.rvs(m, random_state=rng).reshape(m, -1)


def _fit(
    log_density: LogDensity, mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> _Envelope:
    """The envelope with the moments of the target, by tempered reweighting."""
    settled = 0
    for _ in range(MAX_ROUNDS):
        phi, log_q = _Envelope(mean, covariance).draw_narrow(ROUND, rng)
        log_w = log_density(phi) - log_q
        if not np.isfinite(log_w).any():
            raise RuntimeError(
                f"none of {ROUND} draws has a density: this observation is impossible, or nearly so"
            )
        power, w = _temper(log_w, ROUND / 10)
        mean, covariance = _moments(phi, w)
        # Two rounds at full power: the first still has the weights of a poorer fit.
        settled += power == 1.0
        if settled == 2:
            return _Envelope(mean, covariance)
    raise RuntimeError(
        f"no envelope was found in {MAX_ROUNDS} rounds of {ROUND} draws: the posterior at this "
        "observation is too far from one peak"
    )


def _moments(phi: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(d,)`` and covariance ``(d, d)`` under normalised weights."""
    mean = w @ phi
    centred = phi - mean
    return mean, (w[:, None] * centred).T @ centred


def _temper(log_w: np.ndarray, target: float) -> tuple[float, np.ndarray]:
    """The largest power β ≤ 1 with an effective sample size of at least target, and its weights."""

    def weights(power: float) -> np.ndarray:
        w = np.exp(power * (log_w - log_w.max()))
        return w / w.sum()

    def suffices(power: float) -> bool:
        return bool(1 / (weights(power) ** 2).sum() >= target)

    if suffices(1.0):
        return 1.0, weights(1.0)
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if suffices(middle) else (low, middle)
    return low, weights(low)
