r"""What held-out simulations say of flow and proxy: likelihoods, log Z, effective sample size.

:math:`Z_\psi(x)` is estimated by multiple importance sampling, half of the draws from the flow and
half from the base, with the balance heuristic. Few draws flatter the proxy (the estimate of log Z
is biased downwards): increase them before reporting a proxy density.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .divergences import (
    balance_heuristic,
    effective_sample_size,
    log_partition,
    reverse_kl,
)
from .estimator import JeffreysEstimator
from .inputs.arrays import as_float
from .utils.checks import check_counts
from .utils.precision import without_autocast

__all__ = ["ProxyDiagnostics", "diagnose_proxy"]

# Pairs of a draw and an x at once; as many on all devices, so that all draw alike.
_PAIRS = 2**12


class ProxyDiagnostics(NamedTuple):
    """Per-x numbers, each of shape (B,), nats unless stated.

    ``nll`` is the negative log density of the proxy at the data, ``log_partition`` its log Z,
    ``reverse_kl`` KL(flow || proxy),
    ``effective_sample_size`` that of flow samples reweighted to the proxy, as a fraction.
    """

    nll: Tensor
    log_partition: Tensor
    reverse_kl: Tensor
    effective_sample_size: Tensor


@torch.no_grad()
@without_autocast()
def diagnose_proxy(
    estimator: JeffreysEstimator, theta: Tensor, x: Tensor, *, num_draws: int = 256
) -> ProxyDiagnostics:
    """Measure the proxy at held-out simulations.

    Args:
        estimator: Flow and proxy, as ``JeffreysNPE.train`` returns them.
        theta: Parameters, shape (B, d); tensors of any real type or numpy arrays.
        x: Data, shape (B, *event).
        num_draws: Draws for each x from each of flow and base, at least 1.

    Returns:
        The diagnostics. They cost 2 * num_draws * B evaluations of flow and proxy, a few thousand
        at a time.

    Raises:
        TypeError: If it is no estimator of ``JeffreysNPE``, or theta or x no array of numbers.
        ValueError: If the estimator has no proxy, ``num_draws`` is not positive, or shapes do not
            fit.
    """
    if not isinstance(estimator, JeffreysEstimator):
        raise TypeError(
            f"diagnose_proxy() takes what JeffreysNPE.train() returns, got "
            f"{type(estimator).__name__}; of a posterior, pass posterior.posterior_estimator."
        )
    if estimator.proxy is None:
        raise ValueError("The estimator has no proxy: it was trained with objective='ml'.")
    check_counts(1, num_draws=num_draws)
    theta, x = (
        as_float(name, values).to(estimator.pool_weight)
        for name, values in (("theta", theta), ("x", x))
    )
    shapes = (tuple(estimator.input_shape), tuple(estimator.condition_shape))
    given = (tuple(theta.shape[1:]), tuple(x.shape[1:]))
    if not theta.dim() or theta.shape[:1] != x.shape[:1] or given != shapes:
        raise ValueError(
            f"theta and x must be rows of shapes {shapes[0]} and {shapes[1]}, one x for each "
            f"theta, got {tuple(theta.shape)} and {tuple(x.shape)}."
        )
    if not len(theta):
        raise ValueError("theta and x have no rows: pass at least one simulation.")
    size = max(1, _PAIRS // (2 * num_draws))
    parts = [
        _measure(estimator, *few, num_draws)
        for few in zip(theta.split(size), x.split(size), strict=True)
    ]
    return ProxyDiagnostics(*map(torch.cat, zip(*parts, strict=True)))


def _measure(
    estimator: JeffreysEstimator, theta: Tensor, x: Tensor, num_draws: int
) -> ProxyDiagnostics:
    """Measure the proxy at some rows, all at once."""
    assert estimator.proxy is not None
    network, base = estimator.proxy.network, estimator.proxy.base
    context = estimator.embed(x)
    rows, dim = theta.shape
    from_flow = estimator.sample_embedded(num_draws, context)
    from_base = base.sample(num_draws * rows).reshape(num_draws, rows, dim)
    points = torch.cat((from_flow, from_base.to(from_flow)))

    log_flow = estimator.log_prob_embedded(points, context)
    log_base = base.log_prob(points)
    log_ratio = network(points, context)
    log_proxy = log_ratio + log_base
    proposal = balance_heuristic((log_flow, log_base), (num_draws, num_draws))
    log_z = log_partition(log_proxy, proposal)

    own = slice(0, num_draws)
    log_data = (network(theta.unsqueeze(0), context) + base.log_prob_soft(theta))[0]
    # The soft base: a flow that leaks has an infinite divergence, which no plot can show.
    soft = log_ratio[own] + base.log_prob_soft(points[own])
    return ProxyDiagnostics(
        nll=log_z - log_data,
        log_partition=log_z,
        reverse_kl=reverse_kl(log_flow[own], soft, log_z),
        effective_sample_size=effective_sample_size(log_proxy[own] - log_flow[own]),
    )
