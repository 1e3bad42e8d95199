r"""The linear part of a posterior, in closed form, so that the flow needs to learn only the rest.

.. math:: y = W (\theta - A \bar c - b)

with ridge regression of :math:`\theta` on the embedded data :math:`c` for :math:`A, b`, and the
inverse Cholesky factor of the residuals' covariance for :math:`W`. Where the posterior is linear
and Gaussian, :math:`y` is standard normal for every x before training starts. Elsewhere it is one
more bijection. :math:`\bar c` is the embedded x, cut off at four standard deviations: outliers of x
must not send :math:`\theta` where no flow looks.

The regression's penalty is chosen by leave-one-out, and the covariance is shrunk as far as the
number of simulations asks for (Ledoit and Wolf, 2004), both by scikit-learn.
"""

import math

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from zuko.lazy import LazyTransform, UnconditionalTransform

from ..walls import SoftWalls, support_bounds
from .scales import finite_rows, shift_and_scale, spread

__all__ = [
    "MOST_FEATURES",
    "LinearPosterior",
    "LinearRegression",
    "as_logarithms",
    "column_scales",
    "cut_outliers",
    "is_learnt",
    "linear_entropy",
    "over_decades",
    "ridge_regression",
    "shrunk_cholesky",
    "to_standard_space",
]

# Thickness of the walls in standard deviations of theta: thin, so that the inside stays as it is.
# Thinner and thicker ones by a factor of two or so made no difference in trials.
_THICKNESS = 0.2
# The same, relative to the largest parameter, where it is to be a logarithm: within a wall this
# thick it is one, to 5 percent of its slope.
_THICK = 10.0
# Upper bound relative to a positive lower one from which on it may be one: thin walls do as well
# over fewer decades.
_RANGE = 3e4
# Share of the parameters that may lie on a bound by rounding alone.
_ON_BOUNDS = 0.01
# Rows that decide whether it is, and nats by which the linear posterior must be sharper then.
_ROWS, _SHARPER = 2000, 1.0

_CUT = 4.0
# More rows add nothing to a regression; more features than these want an embedding net.
_MOST_ROWS, MOST_FEATURES = 50_000, 500


class LinearRegression(LazyTransform):
    r"""Lazy transformation of :math:`\theta` to the whitened residuals of its regression on x.

    Nothing in it is trained: coefficients and covariance are buffers.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c); None for mean and covariance alone, where the
            embedding is still to be learnt.
        num_context: Number c of embedded features.
    """

    def __init__(self, theta: Tensor, context: Tensor | None, num_context: int) -> None:
        super().__init__()
        # Embeddings that nobody has z-scored have a scale of their own.
        center, scale = column_scales(context, num_context, theta)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        y = theta.double().numpy()
        coefficients = np.zeros((theta.shape[1], num_context))
        intercept, residuals = y.mean(axis=0), y - y.mean(axis=0)
        if context is not None and 0 < num_context <= MOST_FEATURES:
            c = cut_outliers((context[:_MOST_ROWS] - center) / scale).double().numpy()
            # Data that a user keeps in spite of NaN are for the embedding to deal with.
            finite = np.isfinite(c).all(axis=1)
            if finite.sum() > 2:
                coefficients, intercept, residuals = ridge_regression(
                    c[finite], y[: len(c)][finite]
                )
        lower = shrunk_cholesky(residuals, spread(theta).double().numpy())
        for name, value in (
            ("coefficients", coefficients),
            ("intercept", intercept),
            ("lower", lower),
            ("whitening", np.linalg.inv(lower)),
        ):
            self.register_buffer(name, torch.as_tensor(value, dtype=theta.dtype))

    center: Tensor
    scale: Tensor
    coefficients: Tensor
    intercept: Tensor
    lower: Tensor
    whitening: Tensor

    def forward(self, c: Tensor | None = None) -> Transform:
        """Return the transformation given embedded data (*, c)."""
        shift = self.intercept
        if c is not None:
            c = cut_outliers((c - self.center) / self.scale)
            shift = shift + c @ self.coefficients.T
        return _Whitening(shift, self.lower, self.whitening)


def ridge_regression(c: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regress y on c, with the penalty chosen by leave-one-out.

    Args:
        c: Regressors, shape (n, c).
        y: What is explained, shape (n, d).

    Returns:
        Coefficients (d, c), intercept (d,) and leave-one-out residuals (n, d). Residuals of the fit
        itself vanish where it interpolates, and with them the covariance.
    """
    ridge = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(c, y)
    coefficients = np.reshape(ridge.coef_, (y.shape[1], c.shape[1]))
    intercept = np.reshape(ridge.intercept_, y.shape[1])
    centred = c - c.mean(axis=0)
    gram = centred.T @ centred + ridge.alpha_ * np.eye(c.shape[1])
    leverage = 1 / len(c) + (centred * np.linalg.solve(gram, centred.T).T).sum(axis=1)
    residuals = y - c @ coefficients.T - intercept
    return coefficients, intercept, residuals / (1 - leverage).clip(min=1e-9)[:, None]


def shrunk_cholesky(residuals: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Return the Cholesky factor (d, d) of the shrunk covariance of residuals.

    Args:
        residuals: Shape (n, d).
        spreads: Standard deviations of what they are residuals of, shape (d,).
    """
    scale = residuals.std(axis=0)
    # What never varies has no scale of its own.
    scale = np.where(scale < 1e-12 * spreads, spreads, scale)
    correlation, _ = ledoit_wolf(residuals / scale)
    return np.linalg.cholesky(correlation + 1e-6 * np.eye(len(scale))) * scale[:, None]


def is_learnt(embedding: nn.Module) -> bool:
    """Return whether an embedding is still to be learnt: nothing is worth fitting to it yet."""
    return any(parameter.requires_grad for parameter in embedding.parameters())


def column_scales(context: Tensor | None, num: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shift and scale (num,) that standardise columns of embedded data.

    Zero and one for columns that somebody has standardised already: by Chebyshev's inequality at
    most a sixteenth of their rows lies beyond four standard deviations.

    Args:
        context: Embedded data, shape (n, num), or None.
        num: Number of features.
        like: Tensor of the type and device wanted.
    """
    shift, scale = like.new_zeros(num), like.new_ones(num)
    if context is None or num == 0:
        return shift, scale
    finite = finite_rows(context).to(like)
    raw = (finite.abs() > _CUT).to(like).mean(dim=0) > 1 / _CUT**2
    mean, std = shift_and_scale(finite)
    return torch.where(raw, mean, shift), torch.where(raw, std, scale)


def cut_outliers(standardized: Tensor) -> Tensor:
    """Return data in standard deviations, cut off at four."""
    return standardized.clamp(-_CUT, _CUT)


class _Whitening(Transform):
    """y = W (theta - shift), with W lower triangular."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, shift: Tensor, lower: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.shift, self.lower, self.whitening = shift, lower, whitening

    def _call(self, theta: Tensor) -> Tensor:
        return (theta - self.shift) @ self.whitening.T

    def _inverse(self, y: Tensor) -> Tensor:
        return y @ self.lower.T + self.shift

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det W|, the same for all rows, of the shape of the rows."""
        return self.whitening.diagonal().log().sum().expand(x.shape[:-1])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |det W|."""
        y = self._call(x)
        return y, self.log_abs_det_jacobian(x, y)


def to_standard_space(
    theta: Tensor, context: Tensor | None, num_context: int, prior: Distribution | None
) -> tuple[LazyTransform, ...]:
    """Return the maps from theta to an unbounded space without the linear part of the posterior.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c), or None where the embedding is still to be learnt.
        num_context: Number c of embedded features.
        prior: Prior whose bounds become soft walls, or None.
    """
    low, high = support_bounds(prior, theta.shape[-1])
    if not bool((low.isfinite() | high.isfinite()).any()):
        return (LinearRegression(theta, context, num_context),)
    std = spread(theta)
    over_many_decades = (low > 0) & (high > _RANGE * low) & high.isfinite()
    logarithms = ((low == 0) & ~high.isfinite()) | over_many_decades
    if bool(logarithms.any()):
        logarithms = over_decades(theta, context, logarithms)
    thickness = torch.where(logarithms, _THICK * theta.amax(dim=0), _THICKNESS * std)
    # Of decades below any other number, zero is none.
    low = torch.where(logarithms & (low == 0), torch.finfo(theta.dtype).tiny, low)
    # A grid that ends at the bounds would be a spike of density there: the walls stand back.
    often = _ON_BOUNDS * len(theta)
    at_low = ((theta == low).sum(dim=0) > often) & ~logarithms
    at_high = ((theta == high).sum(dim=0) > often) & ~logarithms
    low = torch.where(at_low, low - thickness, low)
    high = torch.where(at_high, high + thickness, high)
    # Simulations outside of the prior are the user's decision: the walls stand behind them.
    lowest, highest = theta.amin(dim=0), theta.amax(dim=0)
    low = torch.where(lowest < low, lowest - 1e-3 * std, low)
    high = torch.where(highest > high, highest + 1e-3 * std, high)
    walls = UnconditionalTransform(SoftWalls, low, high, thickness, buffer=True)
    return walls, LinearRegression(walls()(theta), context, num_context)


def over_decades(theta: Tensor, context: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """Return which parameters are better seen as logarithms, shape (d,): all positive ones or none.

    Rates and scales meet in products and ratios. All of them are, if the linear posterior of the
    logarithms is sharper by a nat than that of the parameters, the Jacobian included.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c); None, and then it is none of them, where the embedding
            is still to be learnt.
        allowed: Which may be, shape (d,); by default all.
    """
    positive = (theta > 0).all(dim=0)
    if allowed is not None:
        positive &= allowed.to(positive.device)
    none = torch.zeros_like(positive)
    if context is None or not 0 < context.shape[1] <= MOST_FEATURES or not bool(positive.any()):
        return none
    theta, context = theta[:_ROWS], context[:_ROWS]
    logs = as_logarithms(theta, positive)
    sharper = linear_entropy(theta, context) - linear_entropy(logs, context)
    # An entropy of logarithms is one of the parameters less the mean of their sum.
    return positive if sharper - logs[:, positive].sum(dim=1).mean() > _SHARPER else none


def as_logarithms(theta: Tensor, which: Tensor) -> Tensor:
    """Return parameters (n, d), those among them that are positive and meant (d,) as logarithms."""
    return torch.where(which, theta.clamp_min(torch.finfo(theta.dtype).tiny).log(), theta)


def linear_entropy(theta: Tensor, context: Tensor) -> Tensor:
    """Return the entropy of the linear posterior, by leave-one-out, up to a constant, nats.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
    """
    regression = LinearRegression(theta, context, context.shape[1])
    return regression.lower.diagonal().log().sum()


class LinearPosterior(nn.Module):
    r"""The density whose whitened residuals are standard normal: normalised, never trained.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c), or None where the embedding is still to be learnt.
        num_context: Number c of embedded features.
        prior: Prior whose bounds it respects, or None.
    """

    def __init__(
        self, theta: Tensor, context: Tensor | None, num_context: int, prior: Distribution | None
    ) -> None:
        super().__init__()
        *walls, regression = to_standard_space(theta, context, num_context, prior)
        self.walls = nn.ModuleList(walls)
        self.regression = regression

    def log_prob(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the log density, minus infinity outside of the bounds.

        Args:
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c).

        Returns:
            Nats, shape (S, B).
        """
        log_slope = theta.new_zeros(())
        for walls in self.walls:
            theta, slopes = walls().call_and_ladj(theta)
            log_slope = slopes.sum(dim=-1)
        y, log_det = self.regression(context).call_and_ladj(theta)
        normal = -0.5 * (y.square().sum(dim=-1) + y.shape[-1] * math.log(2 * math.pi))
        return normal + log_det + log_slope
