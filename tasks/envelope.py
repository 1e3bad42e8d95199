r"""Independent draws from an unnormalised density by rejection under a fitted envelope.

For a density :math:`\pi(\phi) = p(\phi) L(\phi)` on :math:`\mathbb{R}^d` with a Gaussian prior
:math:`p` and a bounded likelihood :math:`L`, the ratio :math:`w = \pi / q` to any Student density
:math:`q` is bounded, since Gaussian tails are lighter. The envelope is a mixture with a common
centre, whose wide component meets skewed posteriors in their long tail,

.. math:: q = \tfrac45\, t_8(\mu, C) + \tfrac15\, t_8(\mu, 4^2 C) .

Two steps:

1. *Fit.* :math:`\mu` and :math:`C` begin at the prior's moments. In every round they become the
   moments of draws from :math:`q` with weights :math:`w^\beta`, where the power :math:`\beta \le 1`
   is the largest that keeps the effective sample size above a tenth of the draws.
2. *Rejection.* Draws from the final :math:`q` are accepted where a uniform variate falls below
   :math:`w / M`, with :math:`M` 1.5 times the largest weight of all draws made so far. Every draw
   keeps its variate, so that a larger weight, when one appears, takes back what was accepted under
   a smaller :math:`M`.

The accepted draws are independent given :math:`M`. They would be exact if :math:`M` bounded all
weights; what an unseen peak could add is of the order of the largest weight over their sum, below
:math:`1 / n`.

References:
    Empirical supremum rejection sampling (Caffo et al., 2002),
    https://doi.org/10.1093/biomet/89.4.745
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from scipy.stats import multivariate_t

__all__ = ["sample_by_envelope"]

LogDensity = Callable[[np.ndarray], np.ndarray]

DEGREES = 8.0
WIDE, SHARE = 4.0, 0.2
ROUND = 2_000
MAX_ROUNDS = 40
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
    phi, log_w, log_u = np.empty((0, len(mean))), np.empty(0), np.empty(0)
    batch = max(2 * n, ROUND)
    while True:
        new_phi, new_log_w = q.draw(batch, log_density, rng)
        phi = np.concatenate((phi, new_phi))
        log_w = np.concatenate((log_w, new_log_w))
        log_u = np.concatenate((log_u, np.log(rng.random(batch))))
        kept = np.flatnonzero(log_u < log_w - (log_w.max() + np.log(SLACK)))
        if len(kept) >= n:
            return phi[kept[:n]]
        if len(phi) > max(1_000 * n, MAX_ROUNDS * ROUND):
            raise RuntimeError(
                f"only {len(kept)} of {len(phi)} draws were accepted, {n} samples were asked for: "
                "the posterior at this observation is too far from one peak"
            )
        wanted = 1.2 * (n - len(kept)) * len(phi) / max(len(kept), 1)
        batch = int(np.clip(wanted, ROUND, 10 * ROUND))


class _Envelope:
    """The mixture q, with centre ``(d,)`` and matrix ``(d, d)``."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean = mean
        self.narrow = multivariate_t(mean, covariance, df=DEGREES)
        self.wide = multivariate_t(mean, WIDE**2 * covariance, df=DEGREES)

    def draw(
        self, m: int, log_density: LogDensity, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws ``(m, d)`` and their log-weights ``(m,)``."""
        centred = self.narrow.rvs(m, random_state=rng).reshape(m, -1) - self.mean
        phi = self.mean + np.where(rng.random((m, 1)) < SHARE, WIDE, 1.0) * centred
        log_q = np.logaddexp(
            np.log1p(-SHARE) + self.narrow.logpdf(phi), np.log(SHARE) + self.wide.logpdf(phi)
        )
        return phi, log_density(phi) - log_q


def _fit(
    log_density: LogDensity, mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> _Envelope:
    """The envelope with the moments of the target, by tempered reweighting."""
    settled = 0
    for _ in range(MAX_ROUNDS):
        phi, log_w = _Envelope(mean, covariance).draw(ROUND, log_density, rng)
        power, w = _temper(log_w, ROUND / 10)
        mean = w @ phi
        centred = phi - mean
        covariance = (w[:, None] * centred).T @ centred
        # Two rounds at full power: the first still has the weights of a poorer fit.
        settled += power == 1.0
        if settled == 2:
            return _Envelope(mean, covariance)
    raise RuntimeError(
        f"no envelope was found in {MAX_ROUNDS} rounds of {ROUND} draws: the posterior at this "
        "observation is too far from one peak"
    )


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
