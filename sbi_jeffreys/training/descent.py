"""The optimizers of flow and proxy, and the parts of one guarded step of both."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..estimator import JeffreysEstimator
from ..layers.conditional_gaussian import ConditionalGaussian
from ..optim.adam import Adam, Optimizer
from ..optim.muon import Muon

__all__ = [
    "Gradients",
    "TrainingDiverged",
    "check_finite",
    "clip",
    "clip_on_device",
    "flow_optimizer",
    "gradients_of",
    "proxy_optimizer",
]


class TrainingDiverged(RuntimeError):
    """The objective, the norm of a gradient or the held-out loss is no longer finite."""


def flow_optimizer(
    estimator: JeffreysEstimator, learning_rate: float, weight_decay: float, *, muon: bool
) -> Optimizer:
    """Return the optimizer of the flow and of the embedding, which belongs to it.

    Args:
        estimator: Flow and proxy.
        learning_rate: Learning rate.
        weight_decay: Decoupled weight decay, for Adam.
        muon: Whether :class:`Muon` trains the matrices of the coupling layers.
    """
    parameters = list(estimator.flow.parameters())
    if not muon:
        return Adam(parameters, learning_rate, weight_decay)
    # Updates of a fixed size throw a layer about whose outputs a sharp posterior multiplies.
    kept: list[nn.Module] = [
        module for module in estimator.flow.modules() if isinstance(module, ConditionalGaussian)
    ]
    kept += [] if estimator.embedding_net is None else [estimator.embedding_net]
    return Muon(parameters, learning_rate, keep=[p for module in kept for p in module.parameters()])


def proxy_optimizer(proxy: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """Return the optimizer of the proxy, with decoupled weight decay."""
    return Adam(proxy.parameters(), learning_rate, weight_decay)


class Gradients(NamedTuple):
    """Gradients of each model that has any, and the norm of all of a model's, scalars."""

    of: list[list[Tensor]]
    norms: list[Tensor]


def gradients_of(loss: Tensor, optimizers: Sequence[Optimizer]) -> Gradients:
    """Return the gradients of a loss, which are also left at the parameters.

    Args:
        loss: A scalar.
        optimizers: One for each model.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    # Each model has its own norm: a proxy in trouble must not slow the flow down.
    gradients = [[p.grad for p in each.parameters if p.grad is not None] for each in optimizers]
    # Without any it is a step of the flow alone.
    gradients = [each for each in gradients if each]
    return Gradients(gradients, [torch.cat([g.flatten() for g in of]).norm() for of in gradients])


def check_finite(objective: float, norms: Sequence[float]) -> None:
    """Raise TrainingDiverged if the objective or the norm of a gradient is not finite."""
    if not math.isfinite(objective):
        raise TrainingDiverged(f"the objective became {objective}.")
    for norm in norms:
        if not math.isfinite(norm):
            raise TrainingDiverged(f"the norm of the gradient became {norm}.")


def clip(gradients: Gradients, norms: Sequence[float], clip_max_norm: float | None) -> None:
    """Scale the gradient of each model down whose norm is too large, in place.

    Args:
        gradients: What is at the parameters.
        norms: Their norms as numbers.
        clip_max_norm: The largest norm; ``None`` for any.
    """
    if clip_max_norm is None:
        return
    for each, norm in zip(gradients.of, norms, strict=True):
        if norm > clip_max_norm:
            torch._foreach_mul_(each, clip_max_norm / norm)


def clip_on_device(gradients: Gradients, clip_max_norm: float | None) -> None:
    """Do what :func:`clip` does, without asking a device for the norms."""
    if clip_max_norm is None:
        return
    for each, norm in zip(gradients.of, gradients.norms, strict=True):
        torch._foreach_mul_(each, (clip_max_norm / norm).clamp_max(1.0))
