r"""One batch of the adaptively symmetrised objective.

Given pairs :math:`(\theta, x)`, the flow is evaluated once: at the data and at K of its own
samples for some of the x. From these numbers, and from the proxy at the same points and at M draws
of its base, come

- :math:`D_1`: the flow's negative log density at the data;
- :math:`D_2`: the log-variance between flow and proxy at the flow's samples. Half of its x are
  jittered: :math:`D_2` needs no :math:`\theta`, so any x will do, and x that carry no data keep
  the flow from memorising those that do;
- :math:`D_3`: ranking losses of the data against base draws, and against the flow's samples where
  x was not jittered (they find what base draws miss when the posterior is much narrower);
- the gauge: :math:`D_2` and :math:`D_3` leave :math:`f_\psi + c(x)` undetermined; half the square
  of :math:`\log \hat Z_\psi(x)` pins it to the normalised proxy, at jittered x too.
  :math:`\hat Z_\psi` from the flow's samples misses what the flow misses, from base draws what is
  narrow. The latter errs downwards only, so that it counts where it is positive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import cross_entropy, log_partition, log_variance, ranking_nce, reverse_kl
from .estimator import JeffreysEstimator

__all__ = ["BatchTerms", "Draws", "batch_terms"]


@dataclass(frozen=True)
class Draws:
    """How many samples estimate the divergences, and where.

    Args:
        flow: Samples K of the flow for each x in D2, at least 2.
        base: Draws M of the base, shared by the batch, at least 1.
        fraction: Fraction of the batch whose x enter D2.
        jitter: Scale of the noise on x in D2, in standard deviations of the embedded x.
        gauge: Weight of the gauge.
    """

    flow: int = 4
    base: int = 8
    fraction: float = 0.25
    jitter: float = 0.3
    gauge: float = 0.1

    def __post_init__(self) -> None:
        if self.flow < 2:
            raise ValueError(f"flow={self.flow}: the log-variance needs at least 2 samples.")
        if self.base < 1:
            raise ValueError(f"base={self.base}: the ranking loss needs at least 1 negative.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must lie in (0, 1].")
        for name in ("jitter", "gauge"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a finite number, not negative.")


class BatchTerms(NamedTuple):
    """What one batch says: per-x losses to descend, and estimates to report.

    ``forward``, ``reverse``, ``proxy`` and ``gauge`` are means over the batch with gradients;
    ``reverse_estimate`` is KL(flow || proxy) in nats, without.
    """

    forward: Tensor
    reverse: Tensor
    proxy: Tensor
    gauge: Tensor
    reverse_estimate: Tensor


def batch_terms(
    estimator: JeffreysEstimator,
    theta: Tensor,
    x: Tensor,
    weights: Tensor,
    draws: Draws,
    *,
    base_draws: Tensor,
    forward_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> BatchTerms:
    """Evaluate the three divergences on a batch.

    Args:
        estimator: Flow and proxy; without a proxy only the forward term is computed.
        theta: Parameters, shape (B, d).
        x: Data, shape (B, *event).
        weights: Weight of each pair (the calibration kernel), shape (B,).
        draws: Numbers of samples.
        base_draws: Negatives from the marginal of theta, shape (M, d).
        forward_loss: Loss of (theta, x) of shape (B,) that takes the place of the flow's negative
            log density: sbi's atomic loss in later rounds.

    Returns:
        The terms, scalars.
    """
    context = estimator.embed(x)
    if estimator.proxy is None:
        if forward_loss is None:
            loss = cross_entropy(estimator.log_prob_embedded(theta.unsqueeze(0), context)[0])
        else:
            loss = forward_loss(theta, x)
        zero = loss.new_zeros(())
        return BatchTerms((weights * loss).mean(), zero, zero, zero, zero)

    num = max(1, round(draws.fraction * len(theta)))
    plain = num // 2
    where = _jittered(context[:num], plain, draws.jitter)
    samples = _frozen_sample(estimator, draws.flow, where)

    # Each model is evaluated once, at the data (B) and at the samples (K, N) together: at these
    # sizes what costs is the number of operations, not how many rows they have.
    points = torch.cat((theta, samples.flatten(0, 1))).unsqueeze(0)
    conditions = torch.cat((context, where.repeat(draws.flow, 1)))
    network, base = estimator.proxy.network, estimator.proxy.base
    log_prob = estimator.log_prob_embedded(points, conditions)[0]
    ratio = network(points, conditions)[0]
    log_unnormalized = ratio + base.log_prob_soft(points[0])
    # Base draws at the data's x, for the ranking loss, and at the jittered x, for the gauge.
    ratio_base = network(base_draws.unsqueeze(1), torch.cat((context, where[plain:])))

    rows = len(theta)
    log_data, log_flow = log_prob[:rows], log_prob[rows:].reshape(draws.flow, num)
    log_proxy = log_unnormalized[rows:].reshape(draws.flow, num)
    log_z = log_partition(log_proxy, log_flow.detach())

    nce = ranking_nce(torch.cat((ratio[None, :rows], ratio_base[:, :rows])))
    if plain and forward_loss is None:
        # Weights against the flow: its own samples, and the data, relative to its density.
        # The flow is only the proposal here: its part in the ratio is a number.
        at_data = log_unnormalized[:rows] - log_data.detach()
        at_samples = log_proxy - log_flow.detach()
        against_flow = ranking_nce(torch.cat((at_data[None, :plain], at_samples[:, :plain])))
        nce = torch.cat((0.5 * (nce[:plain] + against_flow), nce[plain:]))

    loss = cross_entropy(log_data) if forward_loss is None else forward_loss(theta, x)
    return BatchTerms(
        forward=(weights * loss).mean(),
        reverse=(weights[:num] * log_variance(log_flow, log_proxy)).mean(),
        proxy=(weights * nce).mean(),
        # In later rounds the negatives are no draws of the base: they say nothing of Z.
        gauge=(weights[:num] * _gauge(log_z, None if forward_loss else ratio_base, plain)).mean(),
        reverse_estimate=reverse_kl(log_flow, log_proxy, log_z).detach().mean(),
    )


def _gauge(log_z: Tensor, ratio_base: Tensor | None, plain: int) -> Tensor:
    """Return the penalty on log Z at each x of D2, shape (N,).

    ``log_z`` (N,) is estimated at flow samples; ``ratio_base`` (M, B + N - plain) holds the ratio
    at base draws, at all x and then at the jittered ones.
    """
    penalty = log_z.square()
    if ratio_base is not None:
        jittered = ratio_base.shape[1] - (len(log_z) - plain)
        at_base = torch.cat((ratio_base[:, :plain], ratio_base[:, jittered:]), dim=1)
        log_z_base = log_partition(at_base, torch.zeros_like(at_base))
        penalty = penalty + log_z_base.clamp_min(0.0).square()
    return 0.5 * penalty


def _jittered(context: Tensor, plain: int, scale: float) -> Tensor:
    """Return the context with noise on all rows but the first ``plain``."""
    std = context.detach().std(dim=0, correction=0)
    noise = torch.randn_like(context[plain:]) * (scale * std)
    return torch.cat((context[:plain], context[plain:] + noise))


def _frozen_sample(estimator: JeffreysEstimator, num: int, context: Tensor) -> Tensor:
    """Sample the flow as it would be used: without gradient, and without dropout."""
    training = [module for module in estimator.flow.modules() if module.training]
    for module in training:
        module.training = False
    try:
        return estimator.sample_embedded(num, context)
    finally:
        for module in training:
            module.training = True
