r"""Calibration of an amortised posterior over simulations :math:`(\theta, x) \sim \pi`.

Three summaries, all computed by :mod:`sbi.diagnostics`, none of which needs a reference posterior:

- Simulation-based calibration: the rank of :math:`\theta_k` among draws of the k-th marginal of
  :math:`p_\phi(\theta | x)` is uniform if the posterior is exact.
- Expected coverage of the highest-density region of level :math:`\alpha`: how often it holds
  :math:`\theta`. Above :math:`\alpha`, the posterior is too wide; below, too narrow.
- TARP: expected coverage of balls around random reference points. Unlike the others it is
  :math:`\alpha` at all levels only for the exact posterior.

The prior passes the first two. They find overconfidence; they do not measure accuracy.

References:
    Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
    https://arxiv.org/abs/1804.06788, algorithm 1.
    A Trust Crisis In Simulation-Based Inference? (Hermans et al., 2022),
    https://arxiv.org/abs/2110.06581, equation 3.
    Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos et al.,
    2023), https://arxiv.org/abs/2302.03026, algorithm 2.
"""

from typing import NamedTuple

import numpy as np
import torch
from sbi.diagnostics import run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor

from ..utils.seeding import seeded
from ._checks import check_finite

__all__ = ["Coverage", "coverage"]


class Coverage(NamedTuple):
    r"""Calibration over n simulations.

    Attributes:
        ranks: Ranks of the true parameters among the draws of each marginal, in 0..draws, shape
            :math:`(n, d)`.
        p_values: Kolmogorov-Smirnov p-value of the uniformity of each marginal's ranks, shape
            :math:`(d)`.
        levels: Credibilities :math:`\alpha`, shape :math:`(L)`.
        highest_density: Expected coverage of highest-density regions, shape :math:`(L)`.
        tarp: Expected coverage of TARP regions, shape :math:`(L)`.
    """

    ranks: Tensor
    p_values: Tensor
    levels: Tensor
    highest_density: Tensor
    tarp: Tensor


def coverage(
    posterior: NeuralPosterior,
    theta: Tensor,
    x: Tensor,
    *,
    draws: int = 1000,
    levels: int = 21,
    seed: int = 1,
) -> Coverage:
    r"""Compute calibration of a posterior.

    Args:
        posterior: Posterior of sbi, amortised.
        theta: True parameters from the prior, shape :math:`(n, d)`, n at least 100.
        x: Their simulations, shape :math:`(n, *)`.
        draws: Posterior draws for each x, at least 100.
        levels: Number L of credibilities, evenly spaced over [0, 1], at least 2.
        seed: Seed of draws and reference points. The global random state is restored.

    Returns:
        Ranks and expected coverages.

    Raises:
        ValueError: If theta and x differ in number, theta or x has NaN or inf, theta is not as wide
            as the posterior's draws, or there are fewer simulations, draws or levels than stated
            above.
    """
    if theta.ndim != 2 or len(theta) != len(x):
        raise ValueError(
            f"theta must have shape (n, d) and x as many rows, got {tuple(theta.shape)} and "
            f"{tuple(x.shape)}."
        )
    for name, value, least in (
        ("simulations", len(theta), 100),
        ("draws", draws, 100),
        ("levels", levels, 2),
    ):
        if value < least:
            raise ValueError(f"number of {name} is {value}, but at least {least} are needed.")
    theta, x = theta.float(), x.float()
    check_finite("theta", theta)
    check_finite("x", x)
    with seeded(seed):
        drawn = posterior.sample_batched((1,), x=x[:1], show_progress_bars=False)
    if drawn.shape[-1] != theta.shape[1]:
        raise ValueError(
            f"theta has {theta.shape[1]} parameters, draws of the posterior have "
            f"{drawn.shape[-1]}: pass the parameters that x was simulated with."
        )

    # The potential of a density estimator is its log density without sbi's leakage correction: a
    # constant for each x, which costs many draws and changes no rank.
    marginals = [lambda t, _, k=k: t[:, k] for k in range(theta.shape[1])]
    reductions = [*marginals, lambda t, x_i: posterior.potential(t, x=x_i)]
    with seeded(seed):
        ranks, _ = run_sbc(theta, x, posterior, draws, reductions, show_progress_bar=False)
        tarp, grid = run_tarp(
            theta, x, posterior, num_posterior_samples=draws, show_progress_bar=False
        )
    alpha = torch.linspace(0, 1, levels)
    # The region bounded by the density at theta holds the draws of higher density.
    credibility = 1 - ranks[:, -1] / draws
    return Coverage(
        ranks=ranks[:, :-1].long(),
        p_values=check_uniformity_frequentist(ranks[:, :-1], draws),
        levels=alpha,
        highest_density=(credibility <= alpha.unsqueeze(1)).float().mean(dim=1),
        # sbi's grid covers only the range of coverages that occurred.
        tarp=torch.from_numpy(np.interp(alpha, grid.cpu(), tarp.cpu(), left=0, right=1)).float(),
    )
