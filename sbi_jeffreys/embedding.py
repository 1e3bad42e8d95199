"""Flows at data that are embedded already: an embedding is evaluated once for both models."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from zuko.flows.core import Flow

from .layers.autoregressive import AutoregressiveSpline
from .utils.quasi_random import quasi_normal
from .utils.seeding import seeded

__all__ = [
    "SeesSums",
    "embedded",
    "embedding_of",
    "embedding_owner",
    "evaluating",
    "is_learnt",
    "nflows_sample_of_same_noise",
    "put_to_rest",
    "rests",
    "without_embedding",
    "zuko_log_prob",
    "zuko_sample_of_same_noise",
    "zuko_sample_with_log_prob",
]

# Rows that a network for x gets at a time.
_AT_ONCE = 200


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run with a module, and what is in it, in evaluation mode."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def embedded(embedding: nn.Module, x: Tensor) -> Tensor:
    """Return what an embedding makes of x (n, *event), shape (n, c).

    Where no gradient is kept, a network with weights gets so many rows at a time as a batch has by
    default: of images, all that are held out may be more than memory holds.
    """
    together = torch.is_grad_enabled() or embedding.training
    if together or next(embedding.parameters(), None) is None:
        return embedding(x)
    return torch.cat([embedding(part) for part in x.split(_AT_ONCE)])


def zuko_log_prob(flow: Flow, theta: Tensor, context: Tensor) -> Tensor:
    """Return a zuko flow's log density, without composing a distribution for every call.

    Args:
        flow: Of sbi's estimator, without its embedding.
        theta: Shape (*, d).
        context: Embedded data, shape (*, c).

    Returns:
        Nats, shape (*).
    """
    total = theta.new_zeros(())
    context = _seen_by(flow, context)
    # An empty condition is none to zuko.
    condition = context if context.shape[-1] else None
    for lazy in flow.transform.transforms:
        theta, log_slope = lazy(condition).call_and_ladj(theta)
        # Elementwise maps give a slope for each entry, the others one for each row.
        total = total + (log_slope.sum(-1) if log_slope.dim() == theta.dim() else log_slope)
    return flow.base(condition).log_prob(theta) + total


def zuko_sample_with_log_prob(
    flow: Flow, num: int, context: Tensor, seed: int | None
) -> tuple[Tensor, Tensor]:
    """Return samples of the default flow and its log density there, in one pass.

    Args:
        flow: Of sbi's estimator, without its embedding.
        num: Number of samples for each x.
        context: Embedded data, shape (B, c).
        seed: Of quasi-random numbers, the same for all x, in place of torch's random ones.

    Returns:
        Shapes (num, B, d) and (num, B).
    """
    context = _seen_by(flow, context)
    # A standard normal.
    base = flow.base(context)
    features = base.mean.shape[-1]
    if seed is None:
        theta = base.mean.new_empty(num, len(context), features).normal_()
    else:
        noise = quasi_normal(num, features, seed).to(base.mean)
        theta = noise.unsqueeze(1).expand(-1, len(context), -1)
    total = base.log_prob(theta)
    for lazy in reversed(flow.transform.transforms):
        transform = lazy(context)
        if isinstance(transform, AutoregressiveSpline):
            theta, log_slope = transform.inverse_and_ladj(theta)
        else:
            image, theta = theta, transform.inv(theta)
            log_slope = transform.log_abs_det_jacobian(theta, image)
        total = total + (log_slope.sum(-1) if log_slope.dim() == theta.dim() else log_slope)
    return theta, total


def zuko_sample_of_same_noise(flow: Flow, num: int, context: Tensor, seed: int) -> Tensor:
    """Return samples (num, B, d) of a zuko flow, with the same noise for all embedded data."""
    noise = _noise(flow.base(context), num, seed).unsqueeze(1)
    return flow.transform(context).inv(noise.expand(-1, len(context), -1))


def _noise(base: Distribution, num: int, seed: int) -> Tensor:
    """Return draws (num, d) of the base of a flow, quasi-random if that is normal.

    What all data share has one error for all of them: it should be small.
    """
    if isinstance(base, Independent) and isinstance(base.base_dist, Normal):
        loc, scale = base.base_dist.loc, base.base_dist.scale
        return loc + scale * quasi_normal(num, len(loc), seed).to(loc)
    with seeded(seed, base.mean.device):
        return base.sample((num,))


def nflows_sample_of_same_noise(flow: Any, num: int, context: Tensor, seed: int) -> Tensor:
    """Return the same of a flow of nflows whose base is a standard normal."""
    noise = quasi_normal(num, flow._distribution._shape.numel(), seed).to(context)
    rows = context.repeat_interleave(num, dim=0)
    theta, _ = flow._transform.inverse(noise.repeat(len(context), 1), context=rows)
    return theta.unflatten(0, (len(context), num)).transpose(0, 1)


class SeesSums(Flow):
    """A zuko flow that sees sums of embedded data, where others see these themselves.

    Attributes:
        sums: Module of embedded data (*, c).
    """

    sums: nn.Module

    @classmethod
    def of(cls, flow: Flow, sums: nn.Module) -> "SeesSums":
        """Return a flow of sums, changed in place, as one of embedded data."""
        flow.__class__ = cls
        assert isinstance(flow, cls)
        flow.sums = sums
        return flow

    def forward(self, c: Any = None) -> Any:
        """Return the distribution given embedded data."""
        return super().forward(self.sums(c))


def _seen_by(flow: Flow, context: Tensor) -> Tensor:
    return flow.sums(context) if isinstance(flow, SeesSums) else context


def embedding_owner(flow: ConditionalDensityEstimator) -> nn.Module | None:
    """Return the module in which sbi keeps the embedding: the estimator itself, or its net."""
    for module in (flow, getattr(flow, "net", None)):
        if module is not None and "_embedding_net" in module._modules:
            return module
    return None


def embedding_of(flow: ConditionalDensityEstimator) -> nn.Module | None:
    """Return a flow's embedding, sbi's z-scoring included, if it has one."""
    owner = embedding_owner(flow)
    return None if owner is None else owner.get_submodule("_embedding_net")


def without_embedding(
    flow: ConditionalDensityEstimator, condition_shape: torch.Size
) -> ConditionalDensityEstimator:
    """Return a view of the flow, sharing its parameters, that takes embedded data.

    Args:
        flow: With an embedding (:func:`embedding_owner`).
        condition_shape: Shape of one of the embedded data.
    """
    view = _shallow_copy(flow)
    view._condition_shape = condition_shape
    if embedding_owner(flow) is not flow:
        view._modules["net"] = _shallow_copy(flow.net)
    owner = embedding_owner(view)
    assert owner is not None
    owner._modules["_embedding_net"] = nn.Identity()
    return view


def _shallow_copy(module: nn.Module) -> Any:
    duplicate = copy.copy(module)
    duplicate._modules = dict(module._modules)
    return duplicate


def is_learnt(embedding: nn.Module) -> bool:
    """Return whether an embedding is still to be learnt: nothing is worth fitting to it yet."""
    return any(parameter.requires_grad for parameter in embedding.parameters())


def rests(flow: ConditionalDensityEstimator) -> bool:
    """Return whether a flow has an embedding with weights that are learnt no more."""
    network = embedding_of(flow)
    if network is None or next(network.parameters(), None) is None:
        return False
    return getattr(flow, "embedding_rests", False) or not is_learnt(network)


def put_to_rest(flow: ConditionalDensityEstimator) -> None:
    """Let a flow's embedding stay as it is, whatever becomes of the module, which is the user's."""
    network = embedding_of(flow)
    assert network is not None
    network.eval()
    flow.embedding_rests = True
