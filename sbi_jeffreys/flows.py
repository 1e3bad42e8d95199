r"""The default flow: zuko's neural spline flow with coupling layers, behind soft walls.

zuko's own transformations, stacked as its ``NSF`` stacks them. Two things are ours: the soft walls
that keep the flow inside of the prior's support (:mod:`sbi_jeffreys.walls`), and the way the
spline is evaluated (:mod:`sbi_jeffreys.splines`): the same parameters, the same values.
"""

from functools import partial
from typing import Any

import torch
import zuko
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalEstimatorBuilder
from sbi.neural_nets.estimators.zuko_flow import ZukoFlow
from sbi.utils.sbiutils import standardizing_net
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.core import Flow
from zuko.lazy import UnconditionalTransform
from zuko.transforms import DependentTransform, MonotonicRQSTransform

from .splines import RationalQuadraticSpline
from .walls import SoftWalls, support_bounds

__all__ = ["accelerate", "flow_nn"]

# Thickness of the walls in standard deviations of theta. Between 0.1 and 0.4 the held-out NLL
# hardly moves (docs/method.md); without walls leakage costs, with a logit sharp posteriors do.
_THICKNESS = 0.2


def flow_nn(
    prior: Distribution | None = None,
    *,
    hidden_features: int = 64,
    hidden_layers: int = 2,
    num_transforms: int = 3,
    num_bins: int = 8,
    embedding_net: nn.Module | None = None,
) -> ConditionalEstimatorBuilder[ConditionalDensityEstimator]:
    """Return a builder of the default flow, as sbi's ``posterior_nn`` does for its estimators.

    Args:
        prior: Prior whose bounds the flow respects; ``None`` for no bounds.
        hidden_features: Width of the conditioners.
        hidden_layers: Their number of hidden layers.
        num_transforms: Number of coupling layers.
        num_bins: Bins of the splines.
        embedding_net: Network for x, applied after z-scoring.

    Returns:
        Function of (theta, x), shapes (n, d) and (n, *event), that builds the flow.
    """

    def build(theta: Tensor, x: Tensor) -> ZukoFlow:
        embedding = nn.Sequential(standardizing_net(x), embedding_net or nn.Flatten())
        with torch.no_grad():
            context = embedding(x[:2]).shape[-1]
        nsf = zuko.flows.NSF(
            features=theta.shape[-1],
            context=context,
            bins=num_bins,
            transforms=num_transforms,
            hidden_features=[hidden_features] * hidden_layers,
            # Two passes: coupling layers, whose inverse costs two evaluations for any d.
            **({"passes": 2} if theta.shape[-1] > 1 else {}),
        )
        transforms = (*_to_standard_space(theta, prior), *nsf.transform.transforms)
        flow = ZukoFlow(Flow(transforms, nsf.base), embedding, theta[0].shape, x[0].shape)
        accelerate(flow)
        return flow

    return build


def _to_standard_space(
    theta: Tensor, prior: Distribution | None
) -> tuple[UnconditionalTransform, ...]:
    """Return the maps from theta to an unbounded space of zero mean and unit variance."""
    std = theta.std(dim=0)
    std = torch.where(std > 1e-12, std, torch.ones_like(std))
    transforms: tuple[UnconditionalTransform, ...] = ()
    low, high = support_bounds(prior, theta.shape[-1])
    if bool((low.isfinite() | high.isfinite()).any()):
        # Simulations outside of the prior are the user's decision: the walls stand behind them.
        lowest, highest = theta.amin(dim=0), theta.amax(dim=0)
        low = torch.where(lowest < low, lowest - 1e-3 * std, low)
        high = torch.where(highest > high, highest + 1e-3 * std, high)
        walls = UnconditionalTransform(SoftWalls, low, high, _THICKNESS * std, buffer=True)
        theta = walls()(theta)
        transforms = (walls,)
        std = theta.std(dim=0)
        std = torch.where(std > 1e-12, std, torch.ones_like(std))
    mean = theta.mean(dim=0)
    affine = UnconditionalTransform(AffineTransform, loc=-mean / std, scale=1 / std, buffer=True)
    return (*transforms, affine)


def accelerate(flow: nn.Module) -> None:
    """Let every spline of a zuko flow be evaluated by :class:`RationalQuadraticSpline`.

    The parameters, their names and the function stay what they are. Other modules are left alone.

    Args:
        flow: Any module, changed in place.
    """
    module: Any
    for module in flow.modules():
        constructor = getattr(module, "univariate", None)
        if isinstance(constructor, partial) and constructor.func is MonotonicRQSTransform:
            ours = partial(RationalQuadraticSpline, *constructor.args, **constructor.keywords)
            module.univariate, module.shapes = ours, [(module.total,)]
            if type(module) is MaskedAutoregressiveTransform:
                module.__class__ = _SplineTransform


class _SplineTransform(MaskedAutoregressiveTransform):
    """zuko's transformation with all parameters of the spline in one piece, and no more."""

    def meta(self, c: Tensor | None, x: Tensor) -> Transform:
        if c is not None:
            x = torch.cat((x, c.expand(*x.shape[:-1], c.shape[-1])), dim=-1)
        parameters = self.hyper(x).unflatten(-1, (-1, self.total))
        return DependentTransform(self.univariate(parameters), 1)
