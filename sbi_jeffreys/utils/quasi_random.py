"""Points that are spread as draws would be, but more evenly: means over them are more accurate."""

import functools

import torch
from torch import Tensor

__all__ = ["quasi_normal"]

# Quantiles this near to zero and one are none of single precision.
_OUTERMOST = 1e-7


@functools.lru_cache(maxsize=16)
def quasi_normal(num: int, features: int, seed: int) -> Tensor:
    """Return points of a scrambled Sobol sequence as a standard normal has them, (num, features).

    The same for the same arguments, and shared: not to be changed in place. No generator is used.

    Args:
        num: Number of points.
        features: Number of dimensions.
        seed: Seed of the scrambling.

    References:
        Monte Carlo Methods in Financial Engineering (Glasserman, 2003), sections 5.2.3 and 5.4

    Example:
        >>> quasi_normal(256, 3, 0).mean(dim=0).abs().max() < 0.01
        tensor(True)
    """
    sequence = torch.quasirandom.SobolEngine(features, scramble=True, seed=seed)
    quantiles = sequence.draw(num, dtype=torch.float64)
    return torch.special.ndtri(quantiles.clamp(_OUTERMOST, 1 - _OUTERMOST)).float()
