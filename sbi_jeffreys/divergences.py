r"""The three divergences, their estimators, and the partition function of the proxy.

Notation. :math:`\pi(\theta, x)` is the joint that simulations sample, :math:`p_\phi(\theta | x)`
the flow, :math:`q_\psi = \tilde q_\psi / Z_\psi(x)` the proxy, known up to its partition function.
Each divergence is an average over :math:`x`:

.. math::
    D_1 &= \mathrm{KL}(\pi \| p_\phi)
         = \mathbb{E}_\pi[-\log p_\phi(\theta | x)] - H \\
    D_2 &= \mathrm{KL}(p_\phi \| q_\psi)
         = \mathbb{E}_x \mathbb{E}_{p_\phi}[\log p_\phi - \log \tilde q_\psi]
           + \mathbb{E}_x \log Z_\psi(x) \\
    D_3 &= \mathrm{KL}(\pi \| q_\psi)
         = \mathbb{E}_\pi[-\log \tilde q_\psi] + \mathbb{E}_x \log Z_\psi(x) - H

with :math:`H` the conditional entropy of :math:`\pi(\theta | x)`, unknown and constant.

What is minimised is not always the quantity itself. :math:`D_2` is descended through the
log-variance of the weights :math:`r = \log p_\phi - \log \tilde q_\psi`, whose gradient in
:math:`\phi` at samples of :math:`p_\phi` is that of :math:`D_2`,

.. math::
    \nabla_\phi \tfrac12 \mathrm{Var}_{p_\phi}[r]
    = \mathbb{E}_{p_\phi}[(r - \mathbb{E} r) \nabla_\phi \log p_\phi]
    = \nabla_\phi \mathrm{KL}(p_\phi \| q_\psi)

(samples held fixed), which needs neither :math:`Z_\psi` nor a differentiable sampler, and whose
noise vanishes where :math:`p_\phi = q_\psi`. :math:`D_3` is descended through ranking
noise-contrastive estimation, which is bounded below for any proposal.

Everything here is a pure function of tensors. Shapes: B conditions, S draws for each of them.

References:
    | Adaptive Symmetrization of the KL Divergence (Ben-Dov and Chamon, 2025), arXiv 2511.11159
    | VarGrad (Richter et al., 2020), https://arxiv.org/abs/2010.10436, proposition 1
    | Noise Contrastive Estimation and Negative Sampling for Conditional Models
      (Ma and Collins, 2018), https://arxiv.org/abs/1809.01812, ranking objective
    | Optimally Combining Sampling Techniques (Veach and Guibas, 1995), balance heuristic
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .utils.logsumexp import logsumexp

__all__ = [
    "balance_heuristic",
    "cross_entropy",
    "effective_sample_size",
    "huber",
    "log_mean_exp",
    "log_partition",
    "log_variance",
    "ranking_nce",
    "reverse_kl",
]


def cross_entropy(log_prob: Tensor) -> Tensor:
    r"""Return :math:`-\log p_\phi(\theta | x)`, whose mean is :math:`D_1 + H`.

    Args:
        log_prob: Log density of the flow at data, shape (B,).

    Returns:
        Nats, shape (B,).
    """
    return -log_prob


def reverse_kl(log_prob: Tensor, log_unnormalized: Tensor, log_partition: Tensor) -> Tensor:
    r"""Return :math:`\mathrm{KL}(p_\phi \| q_\psi)` for each x, estimated at samples of the flow.

    Args:
        log_prob: Log density of the flow at its own samples, shape (S, B).
        log_unnormalized: :math:`\log \tilde q_\psi` there, shape (S, B).
        log_partition: :math:`\log Z_\psi(x)`, shape (B,).

    Returns:
        Nats, shape (B,).
    """
    return (log_prob - log_unnormalized).mean(dim=0) + log_partition


def huber(value: Tensor, limit: float) -> Tensor:
    """Return half the square of each value, linear from the limit on, of the same shape."""
    return F.huber_loss(value, torch.zeros_like(value), delta=limit, reduction="none")


def log_variance(log_prob: Tensor, log_unnormalized: Tensor, *, limit: float = math.inf) -> Tensor:
    r"""Return half the unbiased variance of :math:`r = \log p_\phi - \log \tilde q_\psi`.

    Args:
        log_prob: Log density of the flow at detached samples, shape (S, B) with S of at least 2.
        log_unnormalized: :math:`\log \tilde q_\psi` there, shape (S, B).
        limit: Deviation of r from its mean, in nats, from which on the square is continued
            linearly (Huber), so that no sample pulls harder than this.

    Returns:
        Squared nats, shape (B,).

    References:
        VarGrad (Richter et al., 2020), https://arxiv.org/abs/2010.10436, equation 7
    """
    r = log_prob - log_unnormalized
    if math.isinf(limit):
        return 0.5 * r.var(dim=0)
    deviation = r - r.mean(dim=0)
    return huber(deviation, limit).sum(dim=0) / (len(r) - 1)


def ranking_nce(log_weights: Tensor) -> Tensor:
    r"""Return the ranking loss of the data point, slot 0, among its negatives.

    .. math:: -\log \frac{w_0}{\sum_{i=0}^{S} w_i}, \qquad
        w_i = \frac{\tilde q_\psi(\theta_i | x)}{\text{proposal}(\theta_i | x)}

    It is minimised by :math:`\tilde q_\psi \propto \pi(\theta | x)` for any proposal that covers
    it. Factors of the weights that depend on x alone cancel.

    Args:
        log_weights: :math:`\log w`, shape (1 + S, B), the data point first.

    Returns:
        Nats, shape (B,), between 0 and infinity.
    """
    return logsumexp(log_weights, dim=0) - log_weights[0]


def balance_heuristic(log_probs: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    r"""Return the log density of draws pooled from several proposals.

    .. math:: \log \sum_j \frac{n_j}{\sum_i n_i} p_j(\theta)

    Args:
        log_probs: Log density of every pooled draw under each proposal, each of shape (S, B).
        counts: How many of the S draws came from each proposal.

    Returns:
        Nats, shape (S, B).
    """
    total = sum(counts)
    terms = [
        log_prob + math.log(count / total)
        for log_prob, count in zip(log_probs, counts, strict=True)
        if count > 0
    ]
    return torch.logsumexp(torch.stack(terms), dim=0)


def log_partition(log_unnormalized: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Return the importance estimate of :math:`\log Z_\psi(x)`.

    .. math:: \log \frac1S \sum_s \frac{\tilde q_\psi(\theta_s | x)}{\text{proposal}(\theta_s)}

    Args:
        log_unnormalized: :math:`\log \tilde q_\psi` at draws, shape (S, B).
        log_proposal: Log density of the draws' proposal there, shape (S, B).

    Returns:
        Nats, shape (B,). Its expectation is a lower bound, tight as S grows.
    """
    return log_mean_exp(log_unnormalized - log_proposal)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the logarithm of the mean of weights, shape (B,), of their logarithms (S, B)."""
    return logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return Kish's effective sample size as a fraction of the draws.

    .. math:: \frac{(\sum_s w_s)^2}{S \sum_s w_s^2}

    Args:
        log_weights: :math:`\log w`, shape (S, B).

    Returns:
        Between 1 / S and 1, shape (B,); 0 where no draw has any weight.
    """
    # Relative to the largest: infinite weights share all there is.
    largest = log_weights.amax(dim=0)
    infinite = (log_weights == torch.inf).to(log_weights)
    log_weights = torch.where(largest == torch.inf, infinite.log(), log_weights)
    numerator = 2 * torch.logsumexp(log_weights, dim=0)
    denominator = torch.logsumexp(2 * log_weights, dim=0)
    share = torch.exp(numerator - denominator) / log_weights.shape[0]
    return share.masked_fill(denominator == -torch.inf, 0.0)
