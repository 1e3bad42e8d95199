r"""Rejection sampling in batches.

A proposal that yields a random number of independent draws from the target, because it has already
thrown the others away, is repeated until enough have come together. Every exact reference sampler
of a truncated posterior is this loop.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["inside_box", "sample_by_rejection"]

MAX_PROPOSALS = 200_000_000
BATCH = 200_000


def sample_by_rejection(
    propose: Callable[[int], np.ndarray], n: int, *, max_proposals: int = MAX_PROPOSALS
) -> np.ndarray:
    """Repeats a proposal until n of its draws have been accepted.

    Args:
        propose: makes the given number of proposals and returns the accepted ones, ``(k, d)``.
        n: the number of samples, positive.
        max_proposals: the number of proposals after which the search is given up.

    Returns:
        Accepted draws, of shape ``(n, d)``.

    Raises:
        RuntimeError: if fewer than n of ``max_proposals`` proposals were accepted, or none of a
            twentieth of them.
    """
    accepted: list[np.ndarray] = []
    proposed = have = 0
    batch = min(2 * n, BATCH)
    while have < n:
        # Nothing at all in a twentieth of the budget: the rest of it would not give n either.
        if proposed >= (max_proposals if have else max_proposals / 20):
            raise RuntimeError(
                f"only {have} of {proposed} proposals were accepted, {n} samples were asked for: "
                "this observation is nearly impossible under the prior; ask for fewer samples or "
                "check the observation"
            )
        accepted.append(propose(batch))
        proposed += batch
        have += len(accepted[-1])
        batch = int(np.clip(1.2 * (n - have) * proposed / max(have, 1), 1_000, BATCH))
    return np.concatenate(accepted)[:n]


def inside_box(theta: np.ndarray, low: float, high: float) -> np.ndarray:
    """Says which rows of theta lie in the half-open box ``[low, high)`` after rounding to float32.

    Args:
        theta: points, of shape ``(n, d)``.
        low: the lower bound of every component, inclusive.
        high: the upper bound of every component, exclusive.

    Returns:
        Booleans, of shape ``(n,)``.
    """
    # Samples are handed out in float32, where 0.99999999 is 1 and has density zero.
    rounded = theta.astype(np.float32)
    return np.all((rounded >= low) & (rounded < high), axis=1)
