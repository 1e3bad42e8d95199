"""Random numbers of one's own: what trains under a seed leaves the global generators alone.

Those of torch and that of numpy, which priors of numpy and scipy draw from. They are one for all
threads: what runs under a seed runs in one thread at a time.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = [
    "aside",
    "derive_seed",
    "forked",
    "generator_states",
    "of_round",
    "restore_generators",
    "seed_generators",
    "seeded",
]

# Its name among devices: priors draw from numpy's global generator, not from one of ours.
_NUMPY = "numpy"
# Held by the thread that draws under a seed, or in place of the global generators.
_SEEDED = threading.RLock()


def generator_states(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the states of the generators of the CPU and of a device, by their names."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state(), _NUMPY: np.random.get_state()}  # noqa: NPY002
    device = torch.device(device)
    if device.type == "cuda":
        states[str(device)] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states[str(device)] = torch.mps.get_rng_state()
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put generators into the states that :func:`generator_states` has returned."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif device == _NUMPY:
            np.random.set_state(state)  # noqa: NPY002
        elif device.startswith("mps"):
            torch.mps.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def seed_generators(seed: int, device: str | torch.device = "cpu") -> None:
    """Seed the generators of the CPU and of a device.

    ``torch.manual_seed`` seeds those of all devices, also those that nobody puts back.
    """
    torch.default_generator.manual_seed(seed)
    # It takes no others.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def derive_seed(*parts: str | int) -> int:
    """Return a seed in 0..2**32 - 1 that is a hash of what it is for.

    Args:
        parts: Words and numbers.

    Example:
        >>> derive_seed("simulations", "slcp", 1) == derive_seed("simulations", "slcp", 2)
        False
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    # numpy takes 32 bits.
    return int.from_bytes(digest[:4], "big")


def of_round(seed: int, number: int) -> int:
    """Return the seed of a later round: the next integers are seeds of other trainings.

    Args:
        seed: Seed of the training.
        number: Number of the round; the first, 0, has the seed itself.
    """
    return derive_seed("round", seed, number) if number else seed


@contextlib.contextmanager
def forked(device: str | torch.device = "cpu") -> Iterator[None]:
    """Leave the generators of the CPU and of a device as they were."""
    states = generator_states(device)
    try:
        yield
    finally:
        restore_generators(states)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Draw on the CPU, and leave the generators as they were.

    Waits while another thread draws under a seed, whose numbers would be moved.
    """
    with _SEEDED, forked():
        yield


@contextlib.contextmanager
def seeded(
    seed: int | None, device: str | torch.device = "cpu", states: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Draw under a seed, and leave the generators as they were.

    Other threads that want to do so wait.

    Args:
        seed: Seed; ``None`` leaves the global generators in charge.
        device: What is drawn on, besides the CPU.
        states: Where to go on in the random numbers, in place of the seed's first.
    """
    if seed is None:
        yield
        return
    with _SEEDED, forked(device):
        seed_generators(seed, device)
        restore_generators(states or {})
        yield
