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

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform
from zuko.nn import MLP

from .linear import cut_outliers

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
        # Where the network's last outputs stand in the flattened matrix.
        row, column = torch.tril_indices(features, features, -1)
        places = row * features + column if features <= _MOST else row[:0]
        self.register_buffer("places", places, persistent=False)
        self.hyper = MLP(len(center), 2 * features + len(places), hidden_features)

    center: Tensor
    scale: Tensor
    places: Tensor

    def forward(self, c: Tensor) -> Transform:
        """Return the transformation given embedded data (*, c)."""
        d = self.features
        c = cut_outliers((c - self.center) / self.scale)
        shift, log_scale, lower = self.hyper(c).tensor_split([d, 2 * d], dim=-1)
        log_scale = _bounded(log_scale, torch.where(log_scale > 0, _NARROW, _WIDE))
        # The network says s, s m and s L; what is bounded are m and L.
        scale = log_scale.exp()
        shift = _bounded(shift / scale, _SHIFT)
        if not len(self.places):
            return _Affine(log_scale, shift, None)
        lower = _bounded(lower / scale[..., self.places // d], _SLOPE)
        matrix = lower.new_zeros(*lower.shape[:-1], d * d).index_copy(-1, self.places, lower)
        return _Affine(log_scale, shift, matrix.unflatten(-1, (d, d)))


def _bounded(value: Tensor, bound: Tensor | float) -> Tensor:
    """Return the value where it is small, and less than the bound where it is not."""
    return value / (1 + value.abs() / bound)


class _Affine(Transform):
    """y = s ((I + L) theta + m): log s and m (*, d), L strictly lower triangular (*, d, d) or 0."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, log_scale: Tensor, shift: Tensor, lower: Tensor | None) -> None:
        super().__init__()
        self.log_scale, self.shift, self.lower = log_scale, shift, lower

    def _call(self, theta: Tensor) -> Tensor:
        shifted = theta + self.shift
        if self.lower is not None:
            shifted = shifted + torch.einsum("...ij,...j->...i", self.lower, theta)
        return shifted * self.log_scale.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        shifted = y * (-self.log_scale).exp() - self.shift
        return shifted if self.lower is None else _solve(self.lower, shifted)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det A|, of the shape of the rows."""
        return self.log_scale.sum(dim=-1).expand(y.shape[:-1])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |det A|."""
        y = self._call(x)
        return y, self.log_abs_det_jacobian(x, y)


def _solve(lower: Tensor, y: Tensor) -> Tensor:
    """Solve with I + L, L (*B, d, d), for rows (*S, *B, d), a matrix at a time."""
    samples = y.shape[: y.dim() + 1 - lower.dim()]
    columns = y.reshape(samples.numel(), *y.shape[len(samples) :]).movedim(0, -1)
    theta = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
    return theta.movedim(-1, 0).reshape(y.shape)
