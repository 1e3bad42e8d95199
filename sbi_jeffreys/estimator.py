r"""The joint model: flow and proxy in one module, an sbi density estimator.

To sbi it is one density: ``log_prob``, ``sample`` and ``loss`` are those of the pool of flow and
proxy (:mod:`sbi_jeffreys.pool`) under ``.weight``, and the flow's where that is zero, as it is
while training runs. The two are there as ``.flow`` and ``.proxy``; beside the proxy the pool may
hear the likelihoods in ``.stack``. Training looks at flow and proxy through the embedded x, which
is computed once per x and shared (:mod:`sbi_jeffreys.embedded_flow`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn

from . import pool
from .base import Base
from .embedded_flow import EmbeddedFlow
from .embedding import evaluating
from .features.columns import Features
from .features.linear_posterior import LinearPosterior
from .likelihood.base import Likelihood
from .likelihood.stacking import Stack
from .proxy import EnergyProxy, FromLinear, ProxyBuilder
from .selection.missing import Filled
from .selection.screening import Columns
from .selection.seen import Selection
from .utils.precision import without_autocast
from .utils.transforms import within_torch_func
from .utils.warn import warn

__all__ = ["FLOW_ALONE", "ROWS_FOR_SCALE", "JeffreysEstimator", "Pooling"]

ROWS_FOR_SCALE = 1000
"""Rows that tell the scale of the proxy's inputs; to embed more may be costly."""


class Pooling(NamedTuple):
    """What is pooled with the flow: the proxy with a weight, and likelihoods beside its own."""

    weight: float
    stack: Stack | None


FLOW_ALONE = Pooling(0.0, None)


class JeffreysEstimator(EmbeddedFlow):
    r"""Flow :math:`p_\phi(\theta | x)` with its proxy :math:`q_\psi(\theta | x)`.

    Attributes:
        flow: The flow.
        proxy: The proxy, if there is one.
        weight: Weight of the proxy in the density that ``log_prob`` and ``sample`` give; zero, the
            flow alone, until a training has ended. It is part of the ``state_dict``.
        stack: Likelihoods that the pool hears beside the proxy's own, if held-out rows prefer that.

    Args:
        flow: Any conditional density estimator of sbi.
        theta: Parameters of the training simulations, shape (n, d).
        x: Data of the first m of them, shape (m, *event).
        base: Base density of the proxy; ``None`` for a flow without a proxy.
        build_proxy: Builds the energy network from (theta, embedded x); needed with a base.

    Raises:
        ValueError: If there is a base and no build_proxy.
    """

    pool_weight: Tensor
    stack: Stack | None

    def __init__(
        self,
        flow: ConditionalDensityEstimator,
        theta: Tensor,
        x: Tensor,
        *,
        base: Base | None = None,
        build_proxy: ProxyBuilder | None = None,
    ) -> None:
        few = x[:ROWS_FOR_SCALE]
        super().__init__(flow, few)
        if base is not None and build_proxy is None:
            raise ValueError("A base without build_proxy: a proxy needs both.")
        self.register_buffer("pool_weight", torch.zeros(()))
        self.last_level = pool.LastLevel()
        self.spec: dict[str, Any] = {}
        self.proxy: EnergyProxy | None = None
        self.register_module("stack", None)
        if base is not None and build_proxy is not None:
            network = self.new_network(theta[: len(few)], few, base, build_proxy)
            self.proxy = EnergyProxy(network, base, self.embed)

    def new_network(
        self, theta: Tensor, x: Tensor, base: Base, build_proxy: ProxyBuilder
    ) -> nn.Module:
        """Build an energy network, with the linear posterior under it or a start of its own.

        Args:
            theta: Parameters that tell its scales, shape (n, d).
            x: Data that go with them, shape (n, *event).
            base: Base density.
            build_proxy: Builds it from theta and embedded x.
        """
        with torch.no_grad(), evaluating(self.flow):
            context = self.embed(x)
        learnt = self.learns_embedding
        network = build_proxy(theta, context)
        if not isinstance(network, nn.Module):
            raise TypeError(f"proxy must build a module, but returned {type(network).__name__}.")
        if isinstance(network, Likelihood):
            if learnt:
                network.forget_start(theta)
            self._follow_steps(network, x)
            return network
        linear = LinearPosterior(
            theta, None if learnt else context, context.shape[1], base.distribution
        )
        return FromLinear(network, linear, base)

    def _follow_steps(self, network: Likelihood, x: Tensor) -> None:
        """Let a likelihood know the steps of data (n, *event) that are bent, if it sees columns."""
        if self.num_components:
            # Sums of columns come in no steps.
            return
        x = x.flatten(1)
        for module in self.flow.modules():
            if isinstance(module, Columns | Filled):
                x = module(x)
            if isinstance(module, Features):
                network.follow(module, x)

    @property
    def likelihood(self) -> Likelihood | None:
        """The proxy's network if it is a likelihood; ``None`` also where there is no proxy."""
        return None if self.proxy is None else self.proxy.likelihood

    @property
    def columns_seen(self) -> Sequence[int] | None:
        """Numbers of the columns of x that the default flow was given; ``None`` if all were."""
        return Selection.of(self.flow).columns

    @property
    def num_components(self) -> int:
        """Number of principal components that the default flow sees in their place; 0 if none."""
        return Selection.of(self.flow).components

    @property
    def num_statistics(self) -> int:
        """Number of sums of columns in levels that the default flow sees; 0 if it sees columns."""
        return Selection.of(self.flow).statistics.number

    @property
    def weight(self) -> float:
        """Weight of the proxy in the pool."""
        return self.pool_weight.item()

    @weight.setter
    def weight(self, value: float) -> None:
        self.pool_weight.fill_(value)

    @property
    def pooling(self) -> Pooling:
        """What is pooled with the flow."""
        return Pooling(self.weight, self.stack)

    @pooling.setter
    def pooling(self, value: Pooling) -> None:
        self.weight, self.stack = value

    def get_uncorrected_mog(self, condition: Tensor) -> Any:
        """Refuse sbi's functions for mixtures of Gaussians, which want to know their parts.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "A pool of flow and proxy is no mixture of Gaussians: pass the flow, estimator.flow."
        )

    @without_autocast()
    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return parameters as points of the flow's base, where the flow stands alone; as in sbi.

        Raises:
            TypeError: If the density is a pool: no transform of a base.
        """
        if self.weight:
            raise TypeError(
                "A pool of flow and proxy is no transform of a base, which sbi's LC2ST_NF asks "
                "for: take LC2ST, or draws and transform of the flow, "
                "trainer.build_posterior(estimator.flow) and estimator.flow.inverse_transform."
            )
        return self.flow.inverse_transform(input, condition)

    @without_autocast()
    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return the log density, shape (S, B) for theta (S, B, d) or (B, d) and x (B, *event).

        Args:
            input: Parameters, of any real type.
            condition: Data, likewise; one dimension of size 1 takes the size of the other's.
            kwargs: For the flow, where it stands alone.

        Raises:
            RuntimeError: If a gradient in x is asked of the pool, whose normaliser has none, or
                one in theta by ``torch.func``.
            TypeError: If the pool is given keyword arguments.
        """
        if self.weight and within_torch_func():
            raise RuntimeError(
                "torch.func does not reach through the normaliser of the pool of flow and proxy, "
                "which is estimated from draws: take torch.autograd.grad, or the flow, "
                "estimator.flow."
            )
        input, condition = self._in_own_type(input), self._in_own_type(condition)
        if not self.weight:
            return self.flow.log_prob(input, condition, **kwargs)
        _refuse("log_prob", kwargs)
        if condition.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "x requires a gradient, which the pool of flow and proxy does not have: its "
                "normaliser is estimated from draws. Take that of the flow, estimator.flow."
            )
        theta, _, num = self._broadcast_and_align(input, condition)
        if condition.dim() > len(self.condition_shape) + 1:
            # An x for each parameter.
            condition = condition.expand(len(theta), num, *self.condition_shape).flatten(0, 1)
            pairs = theta.reshape(1, -1, *self.input_shape)
            return pool.log_prob(self, pairs, self.embed(condition)).reshape(-1, num)
        if len(condition) == 1:
            rows = theta.reshape(-1, 1, *self.input_shape)
            return pool.log_prob(self, rows, self.embed(condition)).reshape(-1, num)
        return pool.log_prob(self, theta, self.embed(condition))

    @without_autocast()
    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return the negative log density, shape (B,), for theta (B, d), x (B, *event).

        Its gradient in the weights lacks that of the pool's normaliser: train on ``flow.loss``.
        """
        if not self.weight:
            own = self._in_own_type
            return self.flow.loss(own(input), own(condition), **kwargs)
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    @without_autocast()
    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return samples, shape (*sample_shape, B, d), for x (B, *event).

        It warns of an x that is farther from the training data than these are wide.

        Raises:
            TypeError: If the pool is given keyword arguments.
            ValueError: If an x is so far from all training data that there are none.
        """
        if not self.weight:
            drawn = self.flow.sample(sample_shape, self._in_own_type(condition), **kwargs)
        else:
            _refuse("sample", kwargs)
            drawn = pool.sample(self, torch.Size(sample_shape).numel(), self.embed(condition))
            drawn = drawn.reshape(*sample_shape, *drawn.shape[1:])
        if not drawn.isfinite().all():
            # Who rejects what lies outside the prior would draw for ever.
            self._check_within_reach(condition)
        self._warn_of_far(condition)
        return drawn

    def _warn_of_far(self, condition: Tensor) -> None:
        """Warn of x (B, *event) that are farther from the training data than these are wide."""
        beyond = self.beyond_reach(condition)
        far = beyond > 1
        if far.any():
            worst = beyond[far].max().item()
            warn(
                f"{int(far.sum())} of {len(far)} x lie far from all training data, up to "
                f"{worst:.3g} times the width of their range beyond it: nothing is known of theta "
                "there, and what is drawn is arbitrary, however narrow. Check the units of x, and "
                "whether the simulator can produce it."
            )

    def _check_within_reach(self, condition: Tensor) -> None:
        """Raise a ValueError for x (B, *event) that no draws can be given for."""
        for number, (x, seen) in enumerate(zip(condition, self.embed(condition), strict=True)):
            if not x.isfinite().all():
                raise ValueError(
                    f"There are no draws at an x with NaN or inf in it (number {number} of "
                    f"{len(condition)}): leave it out, or give missing values the code that they "
                    "have in the simulations."
                )
            if not seen.isfinite().all():
                raise ValueError(
                    f"There are no draws at an x whose largest entry is {x.abs().max():g}: it is "
                    "too far from the training data for its number type. Check the units of x."
                )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights as torch does.

        Raises:
            RuntimeError: As torch does; also if one of the two has a stack and the other has none.
        """
        theirs = [key for key in state_dict if key.startswith("stack.")]
        if strict and bool(theirs) != (self.stack is not None):
            raise RuntimeError(
                "Of these weights and this estimator only one knows of likelihoods that the pool "
                "hears (.stack), which a training chooses: take a trained posterior elsewhere with "
                "sbi_jeffreys.save and sbi_jeffreys.load."
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "JeffreysEstimator":
        super()._apply(fn, recurse)
        self.last_level = pool.LastLevel()
        if self.proxy is not None:
            self.proxy.base.to(next(self.parameters()).device)
        return self


def _refuse(method: str, kwargs: dict[str, Any]) -> None:
    """Refuse keyword arguments that only a flow may know."""
    if kwargs:
        raise TypeError(
            f"{method} of the pool of flow and proxy takes no {', '.join(sorted(kwargs))}: it is "
            "for the flow alone, estimator.flow."
        )
