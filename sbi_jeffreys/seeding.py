"""Random numbers of one's own: what trains under a seed leaves torch's global generators alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["forked", "generator_states", "restore_generators", "seed_generators", "seeded"]


def generator_states(device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Return the states of the generators of the CPU and of a device, by their names."""
    states, device = {"cpu": torch.get_rng_state()}, torch.device(device)
    if device.type == "cuda":
        states[str(device)] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states[str(device)] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Tensor]) -> None:
    """Put generators into the states that :func:`generator_states` has returned."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif device.startswith("mps"):
            torch.mps.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def seed_generators(seed: int, device: str | torch.device = "cpu") -> None:
    """Seed the generators of the CPU and of a device.

    ``torch.manual_seed`` seeds those of all devices, also those that nobody puts back.
    """
    torch.default_generator.manual_seed(seed)
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def forked(device: str | torch.device = "cpu") -> Iterator[None]:
    """Leave the generators of the CPU and of a device as they were."""
    states = generator_states(device)
    try:
        yield
    finally:
        restore_generators(states)


@contextlib.contextmanager
def seeded(
    seed: int | None, device: str | torch.device = "cpu", states: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Draw under a seed, and leave the generators as they were.

    Args:
        seed: Seed; ``None`` leaves torch's generators in charge.
        device: What is drawn on, besides the CPU.
        states: Where to go on in the random numbers, in place of the seed's first.
    """
    if seed is None:
        yield
        return
    with forked(device):
        seed_generators(seed, device)
        restore_generators(states or {})
        yield
