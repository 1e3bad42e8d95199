r"""An energy in the shape of a likelihood: the default network of the proxy.

.. math:: f_\psi(\theta, c) = \log \frac{\mathcal{N}(c; \mu(\theta), \Sigma(\theta))}{m(c)}
    + \eta(\theta)^\top t(c) + a(\theta)

A simulator's data are often near to Gaussian around a mean that depends on :math:`\theta`. Mean and
covariance are functions of :math:`\theta` alone, which few simulations determine far better than a
function of pairs :math:`(\theta, c)`. What is not Gaussian is left to the bilinear term. Where a
posterior is broad, curved or has several modes because a simple likelihood is read backwards (as in
SLCP), the difference is nats.

All of it starts at the linear Gaussian likelihood, in closed form: a ridge regression of the
embedded data :math:`c` on :math:`\theta`. :math:`m(c)` is that likelihood's marginal under a
Gaussian prior, so that :math:`Z_\psi(x)` starts near one.

Parameters and data enter through networks of their own, so that S parameters and B conditions cost
S + B evaluations and a matrix product: many draws from the prior, shared by all conditions, are
cheap.

References:
    Statistical inference for noisy nonlinear ecological dynamic systems (Wood, 2010), the synthetic
    likelihood, https://doi.org/10.1038/nature09319
"""

import numpy as np
import torch
from torch import Tensor, nn

from .linear import cut_outliers, ridge_regression, shrunk_cholesky

__all__ = ["LikelihoodEnergy"]

# Beyond this many embedded features, the correlations are those of the start for every theta.
_MOST_CORRELATED = 20
# Bound on the logarithm of every scale, relative to the start's.
_LOG_SCALE = 6.0


class LikelihoodEnergy(nn.Module):
    r"""Energy network :math:`f_\psi` with a Gaussian likelihood in it.

    With the start's Cholesky factor taken out, the Gaussian term is
    :math:`-\tfrac12 \| A(\theta) (W c - m(\theta)) \|^2 + \log |A(\theta)|`, with :math:`A` lower
    triangular (diagonal for more than 20 features).

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
        hidden_features: Width of the network of theta; that of the data has half of it.
        hidden_layers: Number of hidden layers of the network of theta.
        rank: Number of terms of the bilinear part.

    Raises:
        ValueError: If there are no embedded data, c = 0.

    Example:
        >>> network = LikelihoodEnergy(torch.randn(100, 2), torch.randn(100, 3))
        >>> network(torch.randn(16, 1, 2), torch.randn(5, 3)).shape
        torch.Size([16, 5])
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor
    slope: Tensor
    intercept: Tensor
    marginal_whitening: Tensor
    marginal_intercept: Tensor
    log_ratio: Tensor
    lower: Tensor

    def __init__(
        self,
        theta: Tensor,
        context: Tensor,
        *,
        hidden_features: int = 128,
        hidden_layers: int = 3,
        rank: int = 32,
    ) -> None:
        super().__init__()
        d, c = theta.shape[1], context.shape[1]
        if c == 0:
            raise ValueError("A likelihood needs data: with an empty condition, take proxy='mlp'.")
        mean, std = theta.mean(dim=0), theta.std(dim=0)
        # A parameter that never varies carries no information; its scale is arbitrary.
        std = torch.where(std > 1e-12, std, torch.ones_like(std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        start = _linear_likelihood((theta - mean) / std, context)
        for name, value in start.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=theta.dtype))
        lower = torch.tril_indices(c, c, -1) if c <= _MOST_CORRELATED else torch.zeros(2, 0)
        self.register_buffer("lower", lower.long(), persistent=False)
        self.sizes = (c, c, self.lower.shape[1], rank, 1)
        self.of_theta = _mlp(d, hidden_features, hidden_layers, sum(self.sizes))
        self.of_context = _mlp(c, max(1, hidden_features // 2), 2, rank)
        # At zero the proxy starts as the linear likelihood.
        last = self.of_theta[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forget_start(self) -> None:
        """Start at a standard normal for every theta: the embedding is still to be learnt."""
        for name in ("whitening", "marginal_whitening"):
            getattr(self, name).copy_(torch.eye(len(self.whitening)))
        for name in ("slope", "intercept", "marginal_intercept", "log_ratio"):
            getattr(self, name).zero_()

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return :math:`f_\\psi`.

        Args:
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c).

        Returns:
            Nats, shape (S, B).
        """
        t = (theta - self.mean) / self.std
        m, log_scale, lower, eta, a = self.of_theta(t).split(self.sizes, dim=-1)
        m = m + t @ self.slope.T + self.intercept
        log_scale = _LOG_SCALE * torch.tanh(log_scale / _LOG_SCALE)
        c = cut_outliers(context)
        w, features = c @ self.whitening.T, self.of_context(context)
        shared = theta.shape[-2] == 1 and context.shape[-2] != 1
        distance = self._distance_shared if shared else self._distance
        bilinear = eta @ features.T if shared else (eta * features).sum(-1)
        log_normal = log_scale.sum(-1) - 0.5 * distance(w, m, log_scale.exp(), lower)
        marginal = 0.5 * (c @ self.marginal_whitening.T - self.marginal_intercept).square().sum(-1)
        bilinear = bilinear.squeeze(-2) if shared else bilinear
        return log_normal + marginal + self.log_ratio + bilinear + a.squeeze(-1)

    def _distance(self, w: Tensor, m: Tensor, scale: Tensor, lower: Tensor) -> Tensor:
        """Return the squared distance (S, B) of whitened data (B, c) from means (S, B, c)."""
        if not self.lower.shape[1]:
            return (scale * (w - m)).square().sum(-1)
        A = self._factor(scale, lower)
        return (A @ (w - m).unsqueeze(-1)).squeeze(-1).square().sum(-1)

    def _distance_shared(self, w: Tensor, m: Tensor, scale: Tensor, lower: Tensor) -> Tensor:
        """Return the same for means (S, 1, c), without a tensor of shape (S, B, c) if diagonal."""
        m, scale = m.squeeze(-2), scale.squeeze(-2)
        if not self.lower.shape[1]:
            p = scale.square()
            cross = torch.addmm((p * m.square()).sum(-1, keepdim=True), p * m, w.T, alpha=-2)
            return torch.addmm(cross, p, w.T.square())
        A = self._factor(scale, lower.squeeze(-2))
        return (A @ w.T - A @ m.unsqueeze(-1)).square().sum(-2)

    def _factor(self, scale: Tensor, lower: Tensor) -> Tensor:
        A = torch.diag_embed(scale)
        A[..., self.lower[0], self.lower[1]] = lower
        return A


def _linear_likelihood(theta: Tensor, context: Tensor) -> dict[str, np.ndarray]:
    """Return the Gaussian of the data given standardised parameters, in whitened coordinates."""
    t, c = theta.double().numpy(), cut_outliers(context).double().numpy()
    finite = np.isfinite(c).all(axis=1)
    t, c = t[finite], c[finite]
    d, num = theta.shape[1], context.shape[1]
    slope, intercept, L = np.zeros((num, d)), np.zeros(num), np.eye(num)
    if len(c) > 2:
        slope, intercept, residuals = ridge_regression(t, c)
        L = shrunk_cholesky(residuals)
    # The marginal: what the parameters spread, and the noise.
    spread = np.cov(t.T).reshape(d, d) if len(c) > 2 else np.eye(d)
    M = np.linalg.cholesky(slope @ spread @ slope.T + L @ L.T)
    W, V = np.linalg.inv(L), np.linalg.inv(M)
    return {
        "whitening": W,
        "slope": W @ slope,
        "intercept": W @ intercept,
        "marginal_whitening": V,
        "marginal_intercept": V @ intercept,
        "log_ratio": np.log(np.diag(M)).sum() - np.log(np.diag(L)).sum(),
    }


def _mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.SiLU()]
        inputs = hidden
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))
