"""What devices can and cannot do."""

import torch

__all__ = ["widest"]


def widest(device: torch.device) -> torch.dtype:
    """Return the widest type of real numbers: Apple's devices have no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64
