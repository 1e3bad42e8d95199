"""Autoregressive spline layers of zuko, evaluated with rows in the last dimension.

A layer is a masked network that says, of every feature, the parameters of a spline, from the
features before it in the layer's order and the condition. Parameters are zuko's, values are zuko's;
two things differ. Rows are the last dimension from the network's input to the log slopes, since
both the network's products and the spline (:mod:`sbi_jeffreys.layers.splines`) are faster that way.
And the inverse, which finds the features group by group, evaluates for each what that group needs:
the first depends on the condition alone, which all samples at one condition share.

References:
    | Masked autoregressive flow (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057
    | zuko's :class:`zuko.flows.autoregressive.MaskedAutoregressiveTransform`
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.nn import MaskedLinear
from zuko.transforms import MonotonicRQSTransform

from ..utils.transforms import within_torch_func
from .splines import RationalQuadraticSpline, spline, spline_inverse, spline_inverse_and_slope

__all__ = ["AutoregressiveSpline", "accelerate", "is_layered"]


def accelerate(flow: nn.Module) -> None:
    """Let the splines of a zuko flow, and their autoregressive layers, be evaluated by ours.

    The parameters, their names and the function stay what they are. Other modules are left alone.

    Args:
        flow: Any module, changed in place.
    """
    module: Any
    for module in flow.modules():
        # Without a network (one dimension, no condition) the parameters stand alone.
        constructor = getattr(module, "univariate", None) if hasattr(module, "hyper") else None
        if isinstance(constructor, partial) and constructor.func is MonotonicRQSTransform:
            ours = partial(RationalQuadraticSpline, *constructor.args, **constructor.keywords)
            module.univariate, module.shapes = ours, [(module.total,)]
            if type(module) is MaskedAutoregressiveTransform and is_layered(module):
                module.__class__ = _SplineTransform
                for layer in module.hyper:
                    if isinstance(layer, MaskedLinear):
                        # As numbers: a product with truth values would make these of them first.
                        layer.mask = layer.mask.to(layer.weight)


def is_layered(layer: MaskedAutoregressiveTransform) -> bool:
    """Whether a layer has an order of features, and a masked linear map in the end."""
    return layer.order is not None and _is_plain(layer.hyper[-1])


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a masked linear map and nothing else, like pruned or watched."""
    hooked = module._forward_pre_hooks or module._forward_hooks
    return type(module) is MaskedLinear and not hooked


class AutoregressiveSpline(Transform):
    """One layer at some conditions.

    Args:
        layer: zuko's layer with our spline (:func:`accelerate`).
        condition: Shape (*, c), or ``None``.

    Example:
        >>> from sbi_jeffreys.flows import flow_nn
        >>> flow = flow_nn()(torch.randn(50, 3), torch.randn(50, 2))
        >>> layer = flow.net.transform.transforms[-1](torch.zeros(2))
        >>> theta = torch.randn(5, 3)
        >>> torch.allclose(layer.inv(layer(theta)), theta, atol=1e-4)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: "_SplineTransform", condition: Tensor | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.condition = condition

    def __repr__(self) -> str:
        return f"{type(self).__name__}(passes={self.layer.passes})"

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the Jacobian's determinant at x (*, d), shape (*)."""
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of x (*, d) and the logarithm of the Jacobian's determinant (*)."""
        shape = torch.broadcast_shapes(x.shape[:-1], self._given)
        # In the order of memory, which all that is made of them keeps, layer after layer.
        rows = x.expand(*shape, -1).reshape(shape.numel(), x.shape[-1]).mT.contiguous()
        phi = self._parameters(rows, self._condition_rows(shape))
        y, log_slope = spline(rows, phi, *self._options)
        return y.mT.reshape(*shape, len(y)), log_slope.sum(0).reshape(shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._solve(y)[0]

    @torch.no_grad()
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (*, d) of image y, and log |det dy/dx| there (*), without gradients.

        One evaluation gives both, where ``inv`` and ``log_abs_det_jacobian`` take two.
        """
        return self._solve(y, with_ladj=True)

    def _solve(self, y: Tensor, *, with_ladj: bool = False) -> tuple[Tensor, Tensor]:
        """Return x (*, d) of image y; and log |det dy/dx| there (*) if asked for, else zeros."""
        shape = torch.broadcast_shapes(y.shape[:-1], self._given)
        y = y.expand(*shape, -1).movedim(-1, 0)
        # Before the first group is known the condition is all there is, once for all that share it.
        x = y.new_zeros(len(y), *[1] * (len(shape) - len(self._given)), *self._given)
        total = y.new_zeros(shape)
        for features in self.layer.groups():
            where = x.shape[1:]
            phi = self._parameters(
                x.reshape(len(x), where.numel()), self._condition_rows(where), features
            )
            given = y[features], phi.view(*phi.shape[:2], *where), *self._options
            if with_ladj:
                found, log_slope = spline_inverse_and_slope(*given)
                total = total + log_slope.sum(0)
            else:
                found = spline_inverse(*given)
            x = x.expand(-1, *shape).index_copy(0, features, found)
        return x.movedim(0, -1), total

    @property
    def _given(self) -> torch.Size:
        """Shape of the conditions, without their entries."""
        return torch.Size() if self.condition is None else self.condition.shape[:-1]

    @property
    def _options(self) -> tuple[float, float]:
        """Bound and smallest slope."""
        like = self.layer.univariate(self.layer.hyper[-1].bias)
        return like.bound, like.slope

    def _condition_rows(self, shape: torch.Size) -> Tensor | None:
        """Return the condition for rows of a shape, (c, N)."""
        c = self.condition
        return None if c is None else c.expand(*shape, -1).reshape(shape.numel(), c.shape[-1]).mT

    def _parameters(
        self, x: Tensor, condition: Tensor | None, features: Tensor | None = None
    ) -> Tensor:
        """Return what the network says, for all features or some of them.

        Args:
            x: Shape (d, N).
            condition: Shape (c, N).
            features: Their numbers, shape (f,).

        Returns:
            Shape (f, 3 K - 1, N).
        """
        rows = x if condition is None else torch.cat((x, condition))
        *layers, last = self.layer.hyper
        plain = [*filter(_is_plain, layers), last]
        weights = _masked([each.mask for each in plain], [each.weight for each in plain])
        # Whether the rows are nobody else's, and may be written over.
        own = False
        for layer in layers:
            if _is_plain(layer):
                rows, own = torch.addmm(layer.bias.unsqueeze(1), next(weights), rows), True
            elif type(layer) is nn.ReLU:
                # Activations past the modules' call machinery, which costs more than they do.
                rows = F.relu(rows, inplace=own)
            else:
                rows, own = layer(rows.mT).mT, False
        weight, bias = next(weights), last.bias.unsqueeze(1)
        if features is not None:
            weight = weight.unflatten(0, (-1, self.layer.total))[features].flatten(0, 1)
            bias = bias.unflatten(0, (-1, self.layer.total))[features].flatten(0, 1)
        return torch.addmm(bias, weight, rows).unflatten(0, (-1, self.layer.total))


def _masked(masks: list[Tensor], weights: list[Tensor]) -> Iterator[Tensor]:
    """Return products of masks and weights, one after the other."""
    if within_torch_func():
        return (mask * weight for mask, weight in zip(masks, weights, strict=True))
    return iter(_Masked.apply(*itertools.chain(*zip(masks, weights, strict=True))))


class _Masked(torch.autograd.Function):
    """Products of masks and weights, which a GPU makes all at once, and their gradients."""

    @staticmethod
    def forward(ctx: Any, *masks_and_weights: Tensor) -> tuple[Tensor, ...]:
        ctx.masks = list(masks_and_weights[::2])
        return tuple(_products(ctx.masks, masks_and_weights[1::2]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        masked = _products(ctx.masks, gradients)
        return tuple(part for each in masked for part in (None, each))


def _products(masks: list[Tensor], values: tuple[Tensor, ...]) -> list[Tensor]:
    if masks[0].is_cuda:
        return list(torch._foreach_mul(masks, list(values)))
    return [mask * value for mask, value in zip(masks, values, strict=True)]


class _SplineTransform(MaskedAutoregressiveTransform):
    """zuko's transformation, evaluated with rows in the last dimension."""

    # The order that groups were last made of, its version, and the groups.
    _found: tuple[Tensor, int, list[Tensor]] | None = None

    def groups(self) -> list[Tensor]:
        """Return the features of each group, in the order in which an inverse finds them.

        They are remembered, the same tensors as long as they say the same: what asks a GPU for its
        values makes it wait, and recordings read these where they are.
        """
        order = self.order
        version = -1 if order.is_inference() else order._version
        if self._found is None or self._found[0] is not order or self._found[1] != version:
            # Remembered for uses that take gradients, too.
            with torch.inference_mode(False):
                groups = [(order == group).nonzero().squeeze(-1) for group in order.unique()]
            before = groups if self._found is None else self._found[2]
            same = len(groups) == len(before) and all(map(_are_equal, groups, before))
            self._found = order, version, before if same else groups
        return self._found[2]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load weights, and look at once whether the order is another: a step must not wait."""
        super()._load_from_state_dict(*args, **kwargs)
        if self._found is not None:
            self.groups()

    def forward(self, c: Tensor | None = None) -> Transform:
        # What a user has changed since is left to zuko.
        return AutoregressiveSpline(self, c) if is_layered(self) else super().forward(c)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and torch.equal(one, other)
