r"""The resilient dual problem: where the weights of the three divergences come from.

The ideal, :math:`D_1 = D_2 = D_3 = 0`, is infeasible with finite data and finite models. The
resilient problem relaxes each requirement by a slack :math:`u_i` at a price :math:`h`:

.. math:: \min_{\phi, \psi, u} h(u) \quad \text{subject to} \quad D_i(\phi, \psi) \le u_i

with :math:`h(u) = \sum_i h_i(u_i)` convex and increasing. On the Lagrangian
:math:`h(u) + \sum_i \lambda_i (D_i - u_i)` the models descend
:math:`\sum_i \lambda_i D_i`, the slack is at its stationary point :math:`h_i'(u_i) = \lambda_i`,
and the multiplier ascends,

.. math:: \lambda_i \leftarrow \mathrm{P}_i [\lambda_i + \eta \alpha_i (D_i - u_i(\lambda_i))]

where :math:`\alpha_i` is the curvature of :math:`h_i`, so that a rate :math:`\eta` means the same
for all prices, and :math:`\mathrm{P}_i` projects onto the slopes that :math:`h_i` can have. The
fixed point is
:math:`\lambda_i = h_i'(D_i)`: the worse a divergence, the more it weighs, as far as the price of
giving it up allows.

What each price does is in :mod:`sbi_jeffreys.costs`.

References:
    | Adaptive Symmetrization of the KL Divergence (Ben-Dov and Chamon, 2025), arXiv 2511.11159
    | Resilient Constrained Learning (Hounie, Ribeiro and Chamon, 2023),
      https://arxiv.org/abs/2306.02426, algorithm 1
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .costs import Cost, HuberCost, LinearCost, QuadraticCost
from .utils.checks import check_not_negative, check_positive

__all__ = [
    "DualState",
    "FixedWeights",
    "ResilientDual",
    "Weighting",
    "is_maximum_likelihood",
    "settled",
    "weighting",
]

# Change of a multiplier, relative to its size, at which it stands still, and steps at most.
_STILL, _SETTLING = 1e-9, 10_000
# Length of steps then: half of what the curvature at the origin asks for, which ends the sooner the
# less a price bends, and where it bends no more than four times as much elsewhere.
_LONG = 0.5


class DualState(NamedTuple):
    """Multipliers and slacks, one of each per constraint, shape (3,), float64, on the CPU."""

    multipliers: Tensor
    slacks: Tensor


class Weighting(Protocol):
    """What sets the weights of the divergences: a dual, or constants."""

    def init(self) -> DualState:
        """Return the state to start from."""

    def step(self, state: DualState, divergences: Tensor) -> DualState:
        """Return the state after seeing the divergences, in nats, shape (3,).

        They are data to flow, flow to proxy, data to proxy. During a trial of a lower price the
        second comes multiplied by the price's stiffness, one or less
        (:mod:`sbi_jeffreys.training.patience`): with a price of curvature alpha that is one of a
        lower curvature.
        """


@dataclass(frozen=True)
class ResilientDual:
    """Ascent on the multipliers of the resilient problem.

    Args:
        costs: Price of the slack of each constraint.
        rate: Step size of the ascent in units of each price's curvature: with a quadratic price
            the multiplier is an exponential mean of :math:`\\alpha D` over 1 / rate steps.
        initial: Multipliers to start from; one each when not given.

    Example:
        >>> dual = ResilientDual((LinearCost(), QuadraticCost(2.0)), rate=0.1)
        >>> state = dual.init()
        >>> for _ in range(200):
        ...     state = dual.step(state, torch.tensor([7.0, 0.4]))
        >>> state.multipliers
        tensor([1.0000, 0.8000], dtype=torch.float64)
    """

    costs: Sequence[Cost]
    rate: float = 0.05
    initial: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_positive(rate=self.rate)
        if not isinstance(self.costs, Sequence):
            raise TypeError(f"costs must be a sequence, a price for each, got {self.costs!r}.")
        for cost in self.costs:
            if isinstance(cost, type) or not callable(getattr(cost, "project", None)):
                raise TypeError(
                    f"costs must be prices, such as LinearCost() or QuadraticCost(), got {cost!r}."
                )
        if self.initial is not None and not isinstance(self.initial, Sized):
            raise TypeError(f"initial must be a sequence of multipliers, got {self.initial!r}.")
        if self.initial is not None and len(self.initial) != len(self.costs):
            raise ValueError(
                f"initial has {len(self.initial)} multipliers for {len(self.costs)} costs; "
                "give one for each."
            )
        if self.initial is not None:
            for value in self.initial:
                check_not_negative(initial=value)

    def init(self) -> DualState:
        """Return the initial multipliers, projected, and the slacks that belong to them."""
        initial = [1.0] * len(self.costs) if self.initial is None else self.initial
        multipliers = torch.as_tensor(initial, dtype=torch.float64)
        return _stationary(self.costs, multipliers, torch.zeros_like(multipliers))

    def step(self, state: DualState, divergences: Tensor) -> DualState:
        """Ascend once.

        Args:
            state: Multipliers and slacks.
            divergences: Estimates of the constrained quantities, nats, shape (3,).

        Returns:
            The next state. Divergences that are not finite leave their multiplier as it is.
        """
        # The dual variables are numbers to the models: no gradient may reach them.
        divergences = divergences.detach().to("cpu", torch.float64)
        divergences = torch.where(divergences.isfinite(), divergences, state.slacks)
        # A slack that its multiplier leaves open (a linear price) is wherever the divergence is.
        slacks = _slacks(self.costs, state.multipliers, divergences)
        rates = self.rate * torch.tensor([c.curvature for c in self.costs], dtype=torch.float64)
        ascended = state.multipliers + rates * (divergences - slacks)
        return _stationary(self.costs, ascended, divergences)


def _stationary(costs: Sequence[Cost], multipliers: Tensor, divergences: Tensor) -> DualState:
    """Project the multipliers and put every slack where the price has that slope."""
    projected = torch.stack([c.project(m) for c, m in zip(costs, multipliers, strict=True)])
    return DualState(projected, _slacks(costs, projected, divergences))


def _slacks(costs: Sequence[Cost], multipliers: Tensor, divergences: Tensor) -> Tensor:
    """Return where each price has the slope of its multiplier, shape (3,)."""
    triples = zip(costs, multipliers, divergences, strict=True)
    return torch.stack([cost.slack(m, d) for cost, m, d in triples])


def settled(weights: Weighting, state: DualState, divergences: Tensor) -> DualState:
    """Return where multipliers end if the divergences, shape (3,), stay as they are."""
    if isinstance(weights, ResilientDual):
        # Of what stays as it is nothing has to be averaged: long steps end where short ones do.
        weights = replace(weights, rate=max(weights.rate, _LONG))
    for _ in range(_SETTLING):
        before, state = state, weights.step(state, divergences)
        pair = state.multipliers, before.multipliers
        if torch.allclose(*pair, rtol=_STILL, atol=_STILL, equal_nan=True):
            break
    return state


@dataclass(frozen=True)
class FixedWeights:
    """The penalty problem: constant weights, the baseline that the dual must beat.

    Args:
        weights: Weights of the three divergences; (1, 0, 0) is maximum likelihood.
    """

    weights: Sequence[float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Sized) or len(self.weights) != 3:
            raise ValueError(f"weights must be three numbers, got {self.weights!r}.")
        for value in self.weights:
            check_not_negative(weights=value)
        if self.weights[0] == 0 and self.weights[2] == 0:
            raise ValueError(f"weights {self.weights!r} leave both models without data.")

    def init(self) -> DualState:
        """Return the weights as multipliers; a penalty problem has no slacks."""
        weights = torch.as_tensor(list(self.weights), dtype=torch.float64)
        return DualState(weights, torch.full_like(weights, float("nan")))

    def step(self, state: DualState, divergences: Tensor) -> DualState:
        """Return the state as it is."""
        return state


def _objectives() -> dict[str, Weighting]:
    data = LinearCost()
    quadratic = QuadraticCost()
    return {
        # The multipliers of the data stand still. That of D2 begins near its bound, where a flow
        # that has not met its proxy is within a few steps anyway.
        "dual": ResilientDual((data, HuberCost(), data), initial=(1.0, 3.0, 1.0)),
        "dual_quadratic": ResilientDual((quadratic, quadratic, quadratic)),
        "fixed": FixedWeights((1.0, 1.0, 1.0)),
        "ml": FixedWeights((1.0, 0.0, 0.0)),
    }


def weighting(objective: "str | Weighting") -> Weighting:
    """Return the weighting that goes by a name.

    Args:
        objective: "dual" (linear price on the data terms, Huber on D2), "dual_quadratic"
            (quadratic on all three), "fixed" (weights of one), "ml" (maximum likelihood), or any
            weighting, which is returned as it is.

    Raises:
        ValueError: If no objective has that name, or a weighting is not of three divergences.
        TypeError: If it is neither a name nor a weighting.
    """
    if isinstance(objective, str):
        known = _objectives()
        if objective not in known:
            raise ValueError(
                f"Unknown objective {objective!r}; choose one of {sorted(known)} or pass a "
                "ResilientDual or FixedWeights."
            )
        return known[objective]
    made = not isinstance(objective, type)
    if not (made and hasattr(objective, "init") and hasattr(objective, "step")):
        raise TypeError(
            f"objective must be a name or a weighting with init() and step(), got {objective!r}."
        )
    num = len(objective.init().multipliers)
    if num != 3:
        raise ValueError(
            f"objective has {num} multipliers, and there are three divergences: data to flow, flow "
            "to proxy, data to proxy. Give a price or a weight for each."
        )
    return objective


def is_maximum_likelihood(weights: Weighting) -> bool:
    """Return whether D2 and D3 weigh nothing for ever, so that no proxy is needed."""
    return isinstance(weights, FixedWeights) and weights.weights[1] == weights.weights[2] == 0
