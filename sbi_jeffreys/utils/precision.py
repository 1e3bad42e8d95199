"""Densities are of the precision of their weights, whatever users have asked of torch around them.

Under ``torch.autocast`` products of matrices have three digits: a log density would be off by nats,
and triangular systems are not solved at all.
"""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["without_autocast"]


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Switch ``torch.autocast`` off where it is on.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast():
        ...     print(torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype)
        torch.float32
    """
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            # Older versions of torch know fewer devices, and raise an error for others.
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
