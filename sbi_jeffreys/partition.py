r"""The partition function of a proxy without a condition, from as many draws as it takes.

All rows share one :math:`Z_\psi`, so that it can be known far better than that of a posterior:
pieces of draws from flow and base (:func:`sbi_jeffreys.diagnostics.diagnose_proxy`) are added until
the estimate stands still. Few draws flatter the proxy, since the estimate of log Z is biased
downwards.
"""

import math

import torch
from torch import Tensor

from .diagnostics import diagnose_proxy
from .estimator import JeffreysEstimator
from .utils.warn import warn

__all__ = ["log_unnormalized", "measure_log_partition", "settled_log_partition"]

# Draws of flow and base in one piece, pieces at most, and the change at a doubling of the draws,
# in nats, below which log Z counts as known.
_PIECE, _MOST_PIECES, _TOLERANCE = 4096, 64, 0.01


def log_unnormalized(estimator: JeffreysEstimator, x: Tensor) -> Tensor:
    r"""Return :math:`\log \tilde q_\psi`, nats, shape (n,), at points of shape (n, d)."""
    assert estimator.proxy is not None
    return estimator.proxy.log_prob_unnormalized(x, x[:, :0])[0]


def measure_log_partition(estimator: JeffreysEstimator, *, num_pieces: int) -> float:
    """Return the estimate of log Z, nats, from that many pieces of draws."""
    origin = torch.zeros(1, *estimator.input_shape)
    pieces = [
        diagnose_proxy(estimator, origin, origin[:, :0], num_draws=_PIECE).log_partition
        for _ in range(num_pieces)
    ]
    return (torch.cat(pieces).logsumexp(dim=0) - math.log(num_pieces)).item()


def settled_log_partition(estimator: JeffreysEstimator) -> float:
    """Return log Z, nats, from draws doubled until it stands still; warn if it does not."""
    num, log_z = 1, measure_log_partition(estimator, num_pieces=1)
    while True:
        # Fresh draws and the old ones have equal shares in the new estimate.
        other = measure_log_partition(estimator, num_pieces=num)
        both = float(torch.tensor([log_z, other]).logsumexp(dim=0)) - math.log(2)
        change, log_z, num = abs(both - log_z), both, 2 * num
        if change < _TOLERANCE:
            return log_z
        if num >= _MOST_PIECES:
            warn(
                f"log Z of the proxy is not settled: {log_z:.3f} after {2 * num * _PIECE} draws, "
                f"{change:.3f} more or less than from half of them. Where the flow misses a part "
                "of the proxy, the estimate is too low and flatters the proxy.",
                RuntimeWarning,
            )
            return log_z
