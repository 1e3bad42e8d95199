"""Random numbers of one's own: what trains under a seed leaves torch's global generators alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["forked", "seeded"]


def forked(device: str = "cpu") -> contextlib.AbstractContextManager[None]:
    """Leave the generators of the CPU and of a device as they were."""
    return torch.random.fork_rng(devices=[] if device == "cpu" else [device])


@contextlib.contextmanager
def seeded(seed: int | None, device: str = "cpu", state: Tensor | None = None) -> Iterator[None]:
    """Draw under a seed, and leave the generators as they were.

    Args:
        seed: Seed; ``None`` leaves torch's generators in charge.
        device: What is drawn on, besides the CPU.
        state: Where to go on in the CPU's random numbers, in place of the seed's first.
    """
    if seed is None:
        yield
        return
    with forked(device):
        torch.manual_seed(seed)
        if state is not None:
            torch.set_rng_state(state)
        yield
