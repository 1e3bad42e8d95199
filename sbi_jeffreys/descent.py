"""The optimizers of flow and proxy, and one guarded step of both."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conditional_gaussian import ConditionalGaussian
from .estimator import JeffreysEstimator
from .muon import Muon

__all__ = ["TrainingDiverged", "descend", "flow_optimizer", "proxy_optimizer"]


class TrainingDiverged(RuntimeError):
    """The objective or the weights are no longer finite."""


def flow_optimizer(
    estimator: JeffreysEstimator, learning_rate: float, weight_decay: float, *, muon: bool
) -> torch.optim.Optimizer:
    """Return the optimizer of the flow and of the embedding, which belongs to it.

    Args:
        estimator: Flow and proxy.
        learning_rate: Learning rate.
        weight_decay: Decoupled weight decay, for Adam.
        muon: Whether :class:`Muon` trains the matrices of the coupling layers.
    """
    parameters = estimator.flow.parameters()
    if not muon:
        return torch.optim.AdamW(
            parameters, lr=learning_rate, weight_decay=weight_decay, fused=True
        )
    # Updates of a fixed size throw a layer about whose outputs a sharp posterior multiplies.
    kept: list[nn.Module] = [
        module for module in estimator.flow.modules() if isinstance(module, ConditionalGaussian)
    ]
    kept += [] if estimator.embedding_net is None else [estimator.embedding_net]
    return Muon(parameters, learning_rate, keep=[p for module in kept for p in module.parameters()])


def proxy_optimizer(
    proxy: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer of the proxy, with decoupled weight decay."""
    parameters = proxy.parameters()
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def descend(
    loss: Tensor, optimizers: Sequence[torch.optim.Optimizer], clip_max_norm: float | None
) -> None:
    """Take a step of every optimizer down a loss, if it and its gradient are finite.

    Args:
        loss: A scalar.
        optimizers: One for each model, with one group of parameters.
        clip_max_norm: Norm of a model's gradient to which a larger one is scaled down; ``None`` for
            any.

    Raises:
        TrainingDiverged: If they are not.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # Each model has its own norm: a proxy in trouble must not slow the flow down.
    gradients = [_gradients(optimizer) for optimizer in optimizers]
    # Without any it is a step of the flow alone.
    gradients = [each for each in gradients if each]
    norms = [torch.stack(torch._foreach_norm(each)).norm() for each in gradients]
    # All in one transfer: a GPU stops for each.
    objective, *found = torch.stack([loss.detach(), *norms]).tolist()
    if not math.isfinite(objective):
        raise TrainingDiverged(f"the objective became {objective}.")
    limit = float("inf") if clip_max_norm is None else clip_max_norm
    for each, norm in zip(gradients, found, strict=True):
        if not math.isfinite(norm):
            raise TrainingDiverged(f"the norm of the gradient became {norm}.")
        if norm > limit:
            torch._foreach_mul_(each, limit / norm)
    for optimizer in optimizers:
        optimizer.step()


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
