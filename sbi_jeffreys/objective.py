r"""One batch of the adaptively symmetrised objective.

Given pairs :math:`(\theta, x)`, each model is evaluated once (:mod:`sbi_jeffreys.evaluation`): at
the data and at K samples of the flow for some x. From these numbers, and from the proxy at M draws
of its base, come

- :math:`D_1`: the flow's negative log density at the data;
- :math:`D_2`: flow and proxy against each other, in both directions. From flow to proxy it is the
  log-variance at the flow's samples. Half of its x are jittered: :math:`D_2` needs no
  :math:`\theta`, so any x will do, and x that carry no data keep the flow from memorising those
  that do. From proxy to flow it is the flow's negative log density at pairs that the proxy has
  simulated itself (where it is a likelihood, and can). That part costs little, and is also
  descended in steps that evaluate nothing else of the proxy (:func:`flow_terms`);
- :math:`D_3`: ranking losses of the data against base draws, and against the flow's samples where
  x was not jittered (they find what base draws miss when the posterior is much narrower), and the
  likelihood of the data, where the proxy has one: the divergence between the joint distributions,
  which bounds that between the posteriors, by the chain rule;
- the gauge: :math:`D_2` and :math:`D_3` leave :math:`f_\psi + c(x)` undetermined; half the square
  of :math:`\log \hat Z_\psi(x)`, linear from three nats on, pins it to the normalised proxy. It
  moves nothing but the part of the proxy that depends on x alone; a proxy that has none is pulled
  as a whole, by a tenth.
  :math:`\hat Z_\psi` from the flow's samples misses what the flow misses, from base draws what is
  narrow. The latter errs downwards only, so that it counts where it is positive.

In :math:`D_2` the flow follows the proxy across nats, the proxy listens to small disagreements
only (:class:`Limits`): a flow that is still far behind must not hold a good proxy back, but where
the two are near, each smooths what the other has overfitted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import (
    cross_entropy,
    huber,
    log_mean_exp,
    log_partition,
    log_variance,
    ranking_nce,
    reverse_kl,
)
from .draws import Draws, Negatives, ReverseQueue, ReverseSet
from .estimator import JeffreysEstimator
from .evaluation import Evaluated, evaluate, evaluate_flow
from .proxy import EnergyProxy

__all__ = ["LIMITS", "BatchTerms", "Limits", "batch_terms", "flow_terms", "lagrangian"]

# log Z, in nats, from which on the pull of the gauge no longer grows: at first, and at x far from
# any other, it may be hundreds of nats.
_GAUGE_LIMIT = 3.0

# Weight of the likelihood beside the ranking losses in D3 where each of its Gaussians moves on its
# own. With all of it, discrete data are overfitted (bernoulli_glm, sir); without it, continuous
# ones need twice the steps (slcp). Gaussians that move as one overfit little.
_LIKELIHOOD, _LIKELIHOOD_AS_ONE = 0.3, 1.0

# Weight of the gauge where it pulls the proxy as a whole.
_PULL = 0.1


class Limits(NamedTuple):
    """Deviations between flow and proxy, in nats, from which on D2 pulls no harder.

    A flow that starts far away from its proxy (a prior much narrower than its marginals) deviates
    by hundreds of nats, which would drown the data; where the two are near it is a few tenths. With
    a limit near zero the proxy can put mass, in many dimensions, where no sample of the base falls;
    with a loose one a lagging flow pulls a good proxy off.
    """

    flow: float = 3.0
    proxy: float = 0.1


LIMITS = Limits()


class BatchTerms(NamedTuple):
    """What one batch says: losses to descend, and an estimate to report; scalars, nats.

    ``forward``, ``reverse``, ``proxy`` and ``gauge`` are means over the batch with gradients;
    ``reverse_estimate`` stands for KL(flow || proxy), without a gradient, and is what the
    multiplier of D2 follows. It comes from K self-normalised samples at each x, in part of the flow
    of earlier steps, half of them at jittered x: biased downwards, so that only its scale matters.
    """

    forward: Tensor
    reverse: Tensor
    proxy: Tensor
    gauge: Tensor
    reverse_estimate: Tensor


def lagrangian(terms: BatchTerms, multipliers: Sequence[float] | Tensor, gauge: float) -> Tensor:
    r"""Return what is descended: :math:`\sum_i \lambda_i D_i` and the gauge.

    Args:
        terms: Of one batch.
        multipliers: :math:`\lambda`, shape (3,).
        gauge: Weight of the gauge.

    Returns:
        Nats, a scalar.
    """
    divergences = multipliers[0] * terms.forward
    divergences = divergences + multipliers[1] * terms.reverse + multipliers[2] * terms.proxy
    return divergences + gauge * terms.gauge


def batch_terms(
    estimator: JeffreysEstimator,
    theta: Tensor,
    x: Tensor,
    weights: Tensor,
    draws: Draws,
    *,
    base_draws: Negatives,
    queue: ReverseQueue | None = None,
    forward_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    limits: Limits = LIMITS,
) -> BatchTerms:
    """Evaluate the three divergences on a batch.

    Args:
        estimator: Flow and proxy; without a proxy only the forward term is computed.
        theta: Parameters, shape (B, d).
        x: Data, shape (B, *event).
        weights: Weight of each pair (the calibration kernel), shape (B,).
        draws: Numbers of samples.
        base_draws: Negatives from the marginal of theta.
        queue: Samples left over from earlier steps; by default there are none.
        forward_loss: Loss of (theta, x) of shape (B,) that takes the place of the flow's negative
            log density: sbi's atomic loss in later rounds.
        limits: Deviations between flow and proxy from which on neither is pulled harder.

    Returns:
        The terms, scalars.
    """
    if estimator.proxy is None:
        return flow_terms(estimator, theta, x, weights, draws, forward_loss=forward_loss)
    context = estimator.embed(x)
    queue = ReverseQueue() if queue is None else queue
    reverse_set = queue.next(estimator, theta, context, weights, draws)
    num_own = draws.num_simulated(len(theta))
    found = evaluate(estimator, theta, context, reverse_set, base_draws.theta, num_own=num_own)
    log_z = log_partition(found.proxy_samples, found.flow_samples.detach())
    seen = reverse_kl(found.flow_samples, found.proxy_samples, log_z).detach()
    loss = cross_entropy(found.flow_data) if forward_loss is None else forward_loss(theta, x)
    # Else the flow's samples would be weighed for the prior, and theta would not.
    from_prior = base_draws.rows is None
    return BatchTerms(
        forward=(weights * loss).mean(),
        reverse=_reverse_loss(found, reverse_set, weights, limits),
        proxy=_proxy_loss(
            found,
            reverse_set,
            weights,
            base_draws,
            against_flow=1 / draws.parts if from_prior else 0.0,
            of_likelihood=_weight_of_likelihood(estimator.proxy),
        ),
        # Negatives that are no base draws say nothing of Z.
        gauge=_gauge_loss(found, reverse_set, log_z, with_base=from_prior),
        reverse_estimate=(reverse_set.weights * seen).mean(),
    )


def flow_terms(
    estimator: JeffreysEstimator,
    theta: Tensor,
    x: Tensor,
    weights: Tensor,
    draws: Draws,
    *,
    forward_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> BatchTerms:
    """Evaluate the flow alone: at the data and, for D2, at pairs that the proxy has simulated.

    Args:
        estimator: Flow and proxy; without a proxy there are no pairs.
        theta: As in :func:`batch_terms`.
        x: As there.
        weights: As there.
        draws: As there.
        forward_loss: As there.

    Returns:
        The terms, scalars; those that were not evaluated are zero.
    """
    zero = weights.new_zeros(())
    if forward_loss is not None:
        return BatchTerms((weights * forward_loss(theta, x)).mean(), zero, zero, zero, zero)
    num = draws.num_simulated(len(theta))
    log_prob, flow_own = evaluate_flow(estimator, theta, estimator.embed(x), num)
    forward = (weights * cross_entropy(log_prob)).mean()
    reverse = _own_loss(flow_own, weights) if len(flow_own) else zero
    return BatchTerms(forward, reverse, zero, zero, zero)


def _own_loss(flow_own: Tensor, weights: Tensor) -> Tensor:
    """Return the flow's loss at the proxy's own pairs."""
    # A calibration kernel weighs x, which embedded data are not: its mean must do.
    return weights.mean() * cross_entropy(flow_own).mean()


def _reverse_loss(
    found: Evaluated, reverse_set: ReverseSet, weights: Tensor, limits: Limits
) -> Tensor:
    """Return D2: log-variances at the flow's samples, and the flow at the proxy's own pairs."""
    flow, proxy = found.flow_samples, found.proxy_samples
    follows = log_variance(flow, proxy.detach(), limit=limits.flow)
    listens = log_variance(flow.detach(), proxy, limit=limits.proxy)
    loss = (reverse_set.weights * (follows + listens)).mean()
    return loss + _own_loss(found.flow_own, weights) if len(found.flow_own) else loss


def _proxy_loss(
    found: Evaluated,
    reverse_set: ReverseSet,
    weights: Tensor,
    base_draws: Negatives,
    *,
    against_flow: float,
    of_likelihood: float,
) -> Tensor:
    """Return D3: the data ranked among base draws and among flow samples, and their likelihood.

    ``against_flow`` and ``of_likelihood`` are the weights of the latter two.
    """
    plain = reverse_set.plain
    others = base_draws.without_own(found.ratio_base[:, : len(weights)])
    loss = (weights * ranking_nce(torch.cat((found.ratio_data[None], others)))).mean()
    if plain and against_flow:
        # Weights against the flow: its own samples, and the data, relative to its density.
        # The flow is only the proposal here: its part in the ratio is a number.
        among_flow = torch.cat((found.proxy_plain[None], found.proxy_samples[:, :plain]))
        proposal = torch.cat((found.flow_plain[None], found.flow_samples[:, :plain]))
        ranking = ranking_nce(among_flow - proposal.detach())
        loss = loss + against_flow * (reverse_set.weights[:plain] * ranking).mean()
    if found.log_likelihood is not None:
        loss = loss - of_likelihood * (weights * found.log_likelihood).mean()
    return loss


def _weight_of_likelihood(proxy: EnergyProxy) -> float:
    """Return the weight that the likelihood has beside the ranking losses."""
    as_one = proxy.likelihood is not None and proxy.likelihood.as_one
    return _LIKELIHOOD_AS_ONE if as_one else _LIKELIHOOD


def _gauge_loss(
    found: Evaluated, reverse_set: ReverseSet, log_z: Tensor, *, with_base: bool
) -> Tensor:
    """Return the pull on log Z, estimated at flow samples and, if told so, at base draws."""
    weights = reverse_set.weights
    at_base = found.ratio_base[:, len(found.ratio_data) :]
    log_z_base = log_mean_exp(at_base) if with_base else None
    if found.shift is None:
        return (_PULL * weights * _gauge(log_z, log_z_base)).mean()
    # The gauge trains g(x) only, so that the likelihood stays as it is. Jittered x are skipped:
    # their log Z does not matter.
    few = slice(0, reverse_set.plain or len(log_z))
    moved = found.shift[few] - found.shift[few].detach()
    log_z = log_z[few].detach() + moved
    if log_z_base is not None:
        log_z_base = log_z_base.detach() + moved
    return (weights[few] * _gauge(log_z, log_z_base)).mean()


def _gauge(log_z: Tensor, log_z_base: Tensor | None) -> Tensor:
    """Return the penalty on log Z at each x, shape (N,), as flow samples and base draws see it."""
    penalty = huber(log_z, _GAUGE_LIMIT)
    if log_z_base is not None:
        penalty = penalty + huber(log_z_base.clamp_min(0.0), _GAUGE_LIMIT)
    return penalty
