r"""A Gaussian whose mean and covariance depend on x, as one layer of the flow.

.. math:: y = s(c)\, ((I + L(c))\, \theta + m(c)), \qquad p(y) = N(0, I)

with scales :math:`s > 0`, :math:`L` strictly lower triangular and a shift :math:`m`, all from one
network of the embedded data :math:`c`. Where posteriors are Gaussian, :math:`y` is standard normal
whatever their means, scales and correlations do with x, and by the Bernstein-von Mises theorem that
is where informative data lead. Spline layers alone have a hard time with it: within their bounds
they bend, but they do not shift, and each correlates only features that it keeps apart.

With more than 20 parameters :math:`L` is zero. A network has no use there for thousands of
outputs more, and the inverse of many large ones loses all digits.

All three come from c alone: sampling evaluates them once per x, whatever the number of samples.

References:
    Asymptotic Statistics (van der Vaart, 1998), chapter 10.2: the Bernstein-von Mises theorem
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform
from zuko.nn import MLP

from ..features.scales import cut_outliers
from ..utils.transforms import within_torch_func

__all__ = ["ConditionalGaussian"]

# Bounds, in units of what the linear regression before has left: a thousand times narrower, twenty
# times wider, shifted by ten, ten for each unit of another parameter. Without them one x far from
# all others is enough for samples that overflow.
_NARROW, _WIDE, _SHIFT, _SLOPE = 7.0, 3.0, 10.0, 10.0
# Most parameters between which it has correlations.
_MOST = 20


class ConditionalGaussian(LazyTransform):
    r"""Lazy transformation of :math:`\theta` to what is standard normal where it is Gaussian.

    Args:
        features: Number d of parameters.
        center: What is subtracted from the embedded data, shape (c,).
        scale: What they are then divided by, shape (c,), before they are cut off at four: a network
            that extrapolates shifts and scales without bound.
        hidden_features: Widths of the network's hidden layers.

    Example:
        >>> gaussian = ConditionalGaussian(3, torch.zeros(2), torch.ones(2), [16])
        >>> transform = gaussian(torch.tensor([1.0, -1.0]))
        >>> theta = torch.randn(5, 3)
        >>> torch.allclose(transform.inv(transform(theta)), theta, atol=1e-5)
        True
    """

    def __init__(
        self, features: int, center: Tensor, scale: Tensor, hidden_features: list[int]
    ) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        # Where the network's last outputs stand in the matrix L.
        entries = torch.tril_indices(features, features, -1)
        entries = entries if features <= _MOST else entries[:, :0]
        self.register_buffer("entries", entries, persistent=False)
        # The same as one-hot rows: products with these add and pick, gradients included, in a
        # fraction of the time that many small matrices take.
        one_hot = torch.eye(features)[entries].to(center)
        self.register_buffer("one_hot", one_hot, persistent=False)
        self.hyper = MLP(len(center), 2 * features + entries.shape[1], hidden_features)

    center: Tensor
    scale: Tensor
    entries: Tensor
    one_hot: Tensor

    def forward(self, c: Tensor) -> Transform:
        """Return the transformation given embedded data (*, c)."""
        d = self.features
        c = cut_outliers((c - self.center) / self.scale)
        shift, log_scale, lower = self.hyper(c).split((d, d, len(self.entries[0])), dim=-1)
        log_scale = _bounded(log_scale, torch.where(log_scale > 0, _NARROW, _WIDE))
        # The network says s, s m and s L; what is bounded are m and L.
        scale = log_scale.exp()
        shift = _bounded(shift / scale, _SHIFT)
        if not lower.shape[-1]:
            return _Affine(log_scale, shift, None)
        rows = self.one_hot[0]
        lower = _bounded(lower / (scale @ rows.T), _SLOPE)
        return _Affine(log_scale, shift, _Lower(lower, self.entries, *self.one_hot))


def _bounded(value: Tensor, bound: Tensor | float) -> Tensor:
    """Return the value where it is small, and less than the bound where it is not."""
    if within_torch_func():
        return value / (1.0 + value.abs() / bound)
    return _Bounded.apply(value, bound)


class _Bounded(torch.autograd.Function):
    """value / (1 + |value| / bound), whose slope is one over the square of the divisor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: Tensor | float) -> Tensor:
        divisor = value.abs().div_(bound).add_(1.0)
        ctx.save_for_backward(value, divisor)
        ctx.bound = bound
        return value / divisor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        value, divisor = ctx.saved_tensors
        if torch.is_grad_enabled():
            # To be differentiated again.
            divisor = 1.0 + value.abs() / ctx.bound
        return gradient / divisor.square(), None


class _Lower(NamedTuple):
    """Strictly lower triangular matrices L.

    ``values`` (*B, E) are their entries below the diagonal, whose rows and columns are ``entries``
    (2, E), as one-hot vectors ``rows`` and ``columns`` (E, d).
    """

    values: Tensor
    entries: Tensor
    rows: Tensor
    columns: Tensor

    def times(self, theta: Tensor) -> Tensor:
        """Return L theta, for theta (*S, *B, d)."""
        return (self.values * (theta @ self.columns.T)) @ self.rows

    def solve(self, y: Tensor) -> Tensor:
        """Solve with I + L for y (*S, *B, d), a matrix at a time."""
        d = y.shape[-1]
        places = self.entries[0] * d + self.entries[1]
        flat = self.values.new_zeros(*self.values.shape[:-1], d * d)
        lower = flat.index_copy(-1, places, self.values).unflatten(-1, (d, d))
        samples = y.shape[: y.dim() + 1 - lower.dim()]
        columns = y.reshape(samples.numel(), *y.shape[len(samples) :]).movedim(0, -1)
        theta = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return theta.movedim(-1, 0).reshape(y.shape)


class _Affine(Transform):
    """y = s ((I + L) theta + m): log s and m (*, d), L or none."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, log_scale: Tensor, shift: Tensor, lower: _Lower | None) -> None:
        super().__init__()
        self.log_scale, self.shift, self.lower = log_scale, shift, lower

    def _call(self, theta: Tensor) -> Tensor:
        shifted = theta + self.shift
        if self.lower is not None:
            shifted = shifted + self.lower.times(theta)
        return shifted * self.log_scale.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        shifted = y * (-self.log_scale).exp() - self.shift
        return shifted if self.lower is None else self.lower.solve(shifted)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det A|, of the shape of the rows."""
        return self.log_scale.sum(dim=-1).expand(y.shape[:-1])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |det A|."""
        y = self._call(x)
        return y, self.log_abs_det_jacobian(x, y)
