r"""Kullback-Leibler and Jeffreys divergences between a model and a tractable true posterior.

Let :math:`\pi(\theta) = \tilde\pi(\theta) / Z` be the true posterior at one x, where
:math:`\tilde\pi = p(\theta)\, p(x | \theta)` can be evaluated and the evidence :math:`Z = p(x)` is
unknown, and :math:`p_\phi` the model's normalised density. With the log ratio
:math:`l(\theta) = \log \tilde\pi(\theta) - \log p_\phi(\theta)`,

.. math::
    \mathrm{KL}(\pi \| p_\phi) &= E_\pi[\log \pi - \log p_\phi] = E_\pi[l] - \log Z \\
    \mathrm{KL}(p_\phi \| \pi) &= E_{p_\phi}[\log p_\phi - \log \pi] = \log Z - E_{p_\phi}[l] \\
    J(\pi, p_\phi) &= \mathrm{KL}(\pi \| p_\phi) + \mathrm{KL}(p_\phi \| \pi)
                    = E_\pi[l] - E_{p_\phi}[l]

The evidence cancels in the sum: the Jeffreys divergence needs only samples of both. Each direction
by itself takes :math:`Z = E_{p_\phi}[e^l]`, estimated by importance sampling from the model. That
estimate is too small when the model misses mass (its effective sample size need not show it), which
makes the first divergence too large and the second too small; their sum stays as it is.

References:
    An invariant form for the prior probability in estimation problems (Jeffreys, 1946),
    https://doi.org/10.1098/rspa.1946.0056, equation 1.
    Monte Carlo theory, methods and examples (Owen, 2013), https://artowen.su.domains/mc,
    section 9.2, for standard errors and effective sample size of importance sampling.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DivergencesToTruth", "Estimate", "divergences_to_truth"]


class Estimate(NamedTuple):
    """Monte Carlo estimate.

    Attributes:
        value: Estimate.
        standard_error: Standard error, to first order in one over the number of samples; NaN where
            the value is infinite.
    """

    value: float
    standard_error: float


class DivergencesToTruth(NamedTuple):
    r"""Divergences in nats.

    Attributes:
        forward: :math:`\mathrm{KL}(\pi \| p_\phi)`, infinite where the model has no density at a
            sample of the truth.
        reverse: :math:`\mathrm{KL}(p_\phi \| \pi)`, infinite where the model draws outside the
            support of the truth (leakage).
        jeffreys: Their sum, without an estimate of the evidence.
        log_evidence: :math:`\log Z`.
        effective_sample_size: That of the importance weights behind :math:`\log Z`, as a fraction
            of their number, in [0, 1].
    """

    forward: Estimate
    reverse: Estimate
    jeffreys: Estimate
    log_evidence: Estimate
    effective_sample_size: float


def divergences_to_truth(
    *,
    truth_at_truth: Tensor,
    model_at_truth: Tensor,
    truth_at_model: Tensor,
    model_at_model: Tensor,
) -> DivergencesToTruth:
    r"""Estimate both Kullback-Leibler divergences and their sum, at one x.

    Args:
        truth_at_truth: :math:`\log \tilde\pi(\theta_i)` up to one constant, at samples
            :math:`\theta_i \sim \pi`, shape :math:`(n)`, finite.
        model_at_truth: :math:`\log p_\phi(\theta_i)` at the same samples, shape :math:`(n)`,
            -inf allowed.
        truth_at_model: :math:`\log \tilde\pi(\theta_j)` at samples
            :math:`\theta_j \sim p_\phi`, shape :math:`(m)`, -inf allowed.
        model_at_model: :math:`\log p_\phi(\theta_j)` at the same samples, shape :math:`(m)`,
            finite.

    Returns:
        Divergences with their standard errors.

    Raises:
        ValueError: If shapes do not match, there are fewer than 2 samples, or a log density is NaN,
            +inf, or -inf at a sample of its own distribution or at all of the other's.

    Example:
        >>> true, model = torch.zeros(4), torch.ones(4)  # equal up to the evidence
        >>> divergences_to_truth(
        ...     truth_at_truth=true, model_at_truth=model, truth_at_model=true, model_at_model=model
        ... ).jeffreys
        Estimate(value=0.0, standard_error=0.0)
    """
    _check("truth_at_truth", truth_at_truth, "model_at_truth", model_at_truth)
    _check("model_at_model", model_at_model, "truth_at_model", truth_at_model)
    under_truth = truth_at_truth.detach().double() - model_at_truth.detach().double()
    under_model = truth_at_model.detach().double() - model_at_model.detach().double()
    a, b = _mean(under_truth), _mean(under_model)
    log_z, weights = _log_mean_exp(under_model)

    # log Z and E_model[l] come from the same samples: their errors are correlated, so that the
    # error of the difference is that of the difference of their influence functions.
    influence = weights - under_model
    return DivergencesToTruth(
        forward=_difference(a, log_z),
        reverse=_estimate(log_z.value - b.value, _mean(influence).standard_error),
        jeffreys=_difference(a, b),
        log_evidence=log_z,
        effective_sample_size=float(weights.sum() ** 2 / weights.square().sum() / len(weights)),
    )


def _mean(values: Tensor) -> Estimate:
    return _estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _log_mean_exp(values: Tensor) -> tuple[Estimate, Tensor]:
    """Estimate log E[exp(values)]; return also the weights, relative to their mean."""
    value = float(torch.logsumexp(values, dim=0)) - math.log(len(values))
    weights = torch.exp(values - value)
    return _estimate(value, _mean(weights).standard_error), weights


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Subtract two independent estimates."""
    return _estimate(a.value - b.value, math.hypot(a.standard_error, b.standard_error))


def _estimate(value: float, error: float) -> Estimate:
    return Estimate(value, error if math.isfinite(value) else math.nan)


def _check(own_name: str, own: Tensor, other_name: str, other: Tensor) -> None:
    """Check log densities at samples of one distribution, under it and under the other."""
    if own.ndim != 1 or own.shape != other.shape or len(own) < 2:
        raise ValueError(
            f"{own_name} and {other_name} must be vectors over the same 2 samples or more, got "
            f"shapes {tuple(own.shape)} and {tuple(other.shape)}."
        )
    if not torch.isfinite(own).all():
        raise ValueError(
            f"{own_name} is not finite at some of its own samples; check that samples and density "
            "belong together."
        )
    if torch.isnan(other).any() or torch.isposinf(other).any():
        raise ValueError(
            f"{other_name} has NaN or +inf; a log density is -inf where there is no mass, "
            "else finite."
        )
    if torch.isneginf(other).all():
        raise ValueError(
            f"{other_name} is -inf at every sample; check that both use the same parameters."
        )
