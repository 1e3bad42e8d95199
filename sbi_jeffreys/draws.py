"""How many samples estimate the divergences, and where the flow is sampled.

Sampling a flow costs hardly more for a whole batch than for a part of it. So it is sampled once
for all x of a batch, and the samples are used up over the next steps (:class:`ReverseQueue`). The
log-variance is a divergence between flow and proxy under any distribution of the samples, also
under the flow of a few steps ago.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .embedding import evaluating
from .estimator import JeffreysEstimator
from .utils.checks import check_counts, check_not_negative

__all__ = ["Draws", "Negatives", "ReverseQueue", "ReverseSet", "checked_draws", "negatives"]


@dataclass(frozen=True)
class Draws:
    """How many samples estimate the divergences, and where.

    Args:
        flow: Samples K of the flow for each x in D2, at least 2.
        base: Draws M of the base, shared by the batch, at least 1.
        fraction: Fraction of a batch's x that enter D2 in one step, rounded to 1/n. Samples for a
            whole batch last for n steps. D3 also ranks the data of these x among the flow's
            samples; that loss has this fraction as its weight, since it covers no more of the
            batch.
        simulated: Pairs that the proxy simulates itself, for each row of the batch.
        jitter: Scale of the noise on x in D2, in standard deviations of the embedded x.
        gauge: Weight of the gauge.
        every: The full objective is evaluated every so many steps; in between only the flow is
            trained, on data and pairs that the proxy simulates. A likelihood whose Gaussians each
            move on their own needs the full objective in the first 1,000 steps; proxies that
            cannot simulate need it always.
    """

    flow: int = 4
    base: int = 32
    fraction: float = 0.5
    simulated: float = 1.5
    jitter: float = 0.3
    gauge: float = 1.0
    every: int = 2

    def __post_init__(self) -> None:
        # The log-variance needs two.
        check_counts(2, flow=self.flow)
        check_counts(1, base=self.base, every=self.every)
        check_not_negative(
            fraction=self.fraction,
            simulated=self.simulated,
            jitter=self.jitter,
            gauge=self.gauge,
        )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must lie in (0, 1].")

    @property
    def parts(self) -> int:
        """Steps for which samples at one batch's x last."""
        return round(1 / self.fraction)

    def num_simulated(self, num_rows: int) -> int:
        """Return how many pairs the proxy simulates for a batch of so many rows."""
        return round(self.simulated * num_rows)


def checked_draws(draws: Any, default: Draws) -> Draws:
    """Return numbers of samples as a user gave them, or a default for ``None``.

    Raises:
        TypeError: If they are something else.
    """
    if draws is None:
        return default
    if not isinstance(draws, Draws):
        raise TypeError(f"draws must be sbi_jeffreys.draws.Draws(...) or None, got {draws!r}.")
    return draws


class Negatives(NamedTuple):
    """Draws of the marginal of theta (M, d), and which of the batch's rows they are (M,), if any.

    A row of the batch is no negative of itself.
    """

    theta: Tensor
    rows: Tensor | None = None

    def without_own(self, log_weights: Tensor) -> Tensor:
        """Return log weights of the negatives at each row (M, B), minus infinity at its own."""
        if self.rows is None:
            return log_weights
        rows = torch.arange(log_weights.shape[1], device=log_weights.device)
        return log_weights.masked_fill(self.rows.unsqueeze(1) == rows, -torch.inf)


def negatives(
    estimator: JeffreysEstimator, theta: Tensor, num: int, *, from_base: bool
) -> Negatives:
    """Return draws of the marginal of theta that the ranking loss contrasts data with.

    Args:
        estimator: The model, with a proxy.
        theta: Parameters of the batch, shape (B, d).
        num: Number M of draws.
        from_base: Whether the base is that marginal. In later rounds theta comes from a mixture of
            proposals, of which the batch is a sample.

    Returns:
        The draws, B of them where the batch is smaller.
    """
    if from_base:
        assert estimator.proxy is not None
        return Negatives(estimator.proxy.base.sample(num).to(theta))
    rows = torch.randperm(len(theta), device=theta.device)[:num]
    return Negatives(theta[rows], rows)


class ReverseSet(NamedTuple):
    """Where D2 looks in one step.

    ``theta`` (N, d) and ``context`` (N, c), with their ``weights`` (N,), are data whose first
    ``plain`` rows have no noise on the context; ``samples`` (K, N, d) are the flow's.
    """

    theta: Tensor
    context: Tensor
    weights: Tensor
    samples: Tensor
    plain: int


@dataclass
class ReverseQueue:
    """Samples of the flow for the steps to come, drawn for a whole batch when they run out."""

    sets: list[ReverseSet] = field(default_factory=list)

    def next(
        self,
        estimator: JeffreysEstimator,
        theta: Tensor,
        context: Tensor,
        weights: Tensor,
        draws: Draws,
    ) -> ReverseSet:
        """Return the next set; if none is left, sample the flow at this batch first.

        Args:
            estimator: The flow to sample.
            theta: Parameters of the batch, shape (B, d).
            context: Embedded data, shape (B, c).
            weights: Their weights, shape (B,).
            draws: Numbers of samples.
        """
        if not self.sets:
            parts = min(draws.parts, len(theta))
            self.sets = _sample_sets(estimator, theta, context.detach(), weights, draws, parts)
        return self.sets.pop()


def _sample_sets(
    estimator: JeffreysEstimator,
    theta: Tensor,
    context: Tensor,
    weights: Tensor,
    draws: Draws,
    parts: int,
) -> list[ReverseSet]:
    """Return samples of the flow at the x of a batch, one set for each of so many steps."""
    # An empty condition (density estimation) has nothing to disturb.
    std = context.std(dim=0, correction=0) if context.shape[1] else context.new_zeros(0)
    sizes, where, plains = [], [], []
    for part in context.tensor_split(parts):
        plain = len(part) // 2
        noise = torch.randn_like(part[plain:]) * (draws.jitter * std)
        where.append(torch.cat((part[:plain], part[plain:] + noise)))
        sizes.append(len(part))
        plains.append(plain)
    samples = _frozen_sample(estimator, draws.flow, torch.cat(where))
    columns = (theta.split(sizes), where, weights.split(sizes), samples.split(sizes, dim=1), plains)
    return [ReverseSet(*row) for row in zip(*columns, strict=True)]


def _frozen_sample(estimator: JeffreysEstimator, num: int, context: Tensor) -> Tensor:
    """Sample the flow as it would be used: without gradient, and without dropout."""
    with evaluating(estimator.flow):
        return estimator.sample_embedded(num, context)
