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

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import RidgeCV
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform

from .scales import column_scales, cut_outliers, spread

__all__ = [
    "MOST_FEATURES",
    "LinearRegression",
    "linear_entropy",
    "ridge_regression",
    "shrunk_cholesky",
]

# Residuals near zero of fewer rows than these are taken for overfitting.
_FEW = 20
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
    num = len(residuals)
    if num < _FEW:
        # A line goes through two points, and says nothing of how far off a third will be.
        scale = np.maximum(scale, spreads / num**2)
    correlation, _ = ledoit_wolf(residuals / scale)
    if num < _FEW:
        correlation += (np.eye(len(scale)) - correlation) / num
    return np.linalg.cholesky(correlation + 1e-6 * np.eye(len(scale))) * scale[:, None]


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


def linear_entropy(theta: Tensor, context: Tensor) -> Tensor:
    """Return the entropy of the linear posterior, by leave-one-out, up to a constant, nats.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
    """
    regression = LinearRegression(theta, context, context.shape[1])
    return regression.lower.diagonal().log().sum()
