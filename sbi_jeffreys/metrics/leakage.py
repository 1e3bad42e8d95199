r"""Leakage: the probability that an estimator gives to parameters outside the prior's support.

.. math:: \ell(x) = P_{\theta \sim p_\phi(\cdot | x)}\left[ p(\theta) = 0 \right]

is estimated, for each x, by the fraction of raw draws of the density estimator (not of a posterior
object, which rejects such draws) outside the support. Its standard error is
:math:`\sqrt{\ell (1 - \ell) / n}`. The density corrected for leakage is
:math:`p_\phi / (1 - \ell)` inside the support.

References:
    Truncated Proposals for Scalable and Hassle-Free Simulation-Based Inference (Deistler et al.,
    2022), https://arxiv.org/abs/2210.04815, section 2.2.
"""

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import within_support
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["leakage"]


@torch.no_grad()
def leakage(
    estimator: ConditionalDensityEstimator, prior: Distribution, x: Tensor, *, draws: int = 1000
) -> Tensor:
    r"""Estimate the fraction of raw draws outside the prior's support, for each x.

    Draws that are not finite count as outside.

    Args:
        estimator: Density estimator :math:`p_\phi(\theta | x)`, as `train()` returns it.
        prior: Prior :math:`p(\theta)`, with a support or with a log density of -inf outside.
        x: Data, one batch dimension first, shape :math:`(B, *)`.
        draws: Number n of draws for each x, at least 1.

    Returns:
        Fractions :math:`\ell(x)` in [0, 1], shape :math:`(B)`.

    Raises:
        TypeError: If it is a posterior.
        ValueError: If x lacks its batch dimension or `draws` is below 1.
    """
    if isinstance(estimator, NeuralPosterior):
        raise TypeError(
            f"leakage needs a density estimator, got {type(estimator).__name__}: a posterior "
            "rejects what leaks; pass its .posterior_estimator."
        )
    if draws < 1:
        raise ValueError(f"draws is {draws}, but must be at least 1.")
    event = tuple(estimator.condition_shape)
    if tuple(x.shape[1:]) != event or x.ndim != len(event) + 1:
        raise ValueError(
            f"x must have shape (B, {', '.join(map(str, event))}), got {tuple(x.shape)}; for one "
            "observation pass x.unsqueeze(0)."
        )
    if len(x) == 0:
        return x.new_empty(0, dtype=torch.float64)
    theta = estimator.sample(torch.Size((draws,)), x.float())  # (n, B, d)
    flat = theta.reshape(-1, theta.shape[-1])
    finite = torch.isfinite(flat).all(dim=1)
    # Distributions that validate their arguments raise on NaN: it is replaced first.
    inside = within_support(prior, torch.where(finite.unsqueeze(1), flat, 0.0)) & finite
    # A support may be wider than where there is density: all positive numbers, for a log-uniform.
    if inside.any():
        density = prior.log_prob(flat[inside]).reshape(int(inside.sum()), -1)
        inside[inside.clone()] = (density > -torch.inf).all(dim=1)
    return 1 - inside.unflatten(0, theta.shape[:2]).double().mean(dim=0)
