"""Whether a device has the kernels, which are written in Triton.

Triton comes with torch where torch knows GPUs, on Linux. It needs a C compiler there when a kernel
is used for the first time, and remembers what it has made of one. Without any of it all is done by
operations of torch.
"""

import functools
import logging
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["usable"]

_DTYPES = {torch.float32, torch.float64}
# Between two ways to the same float32 numbers of order one.
_CLOSE = 1e-3


def usable(tensor: Tensor) -> bool:
    """Return whether kernels can work on tensors of this kind, at the place of this one."""
    return tensor.is_cuda and tensor.dtype in _DTYPES and _work_on(tensor.device)


@functools.cache
def _work_on(device: torch.device) -> bool:
    """Compile the kernels for a device, and return whether they say there what operations say."""
    try:
        found, expected = _tried(device)
    except Exception:
        # No Triton, no compiler, a device that it does not know: there is another way.
        logging.getLogger(__name__).info("No kernels on %s.", device, exc_info=True)
        return False
    return all(
        torch.allclose(*pair, rtol=_CLOSE, atol=_CLOSE)
        for pair in zip(found, expected, strict=True)
    )


@torch.no_grad()
def _tried(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return what kernels and operations make of some numbers."""
    from ..layers import spline_operations
    from . import splines

    generator = torch.Generator().manual_seed(0)
    x, gy, gl = (3 * torch.randn(3, 2, 40, generator=generator)).to(device)
    phi = torch.randn(2, 14, 40, generator=generator).to(device)
    options = 5.0, 1e-3

    def made_by(spline: ModuleType) -> list[Tensor]:
        y, log_slope, *kept = spline.image(x, phi, *options)
        gradients = spline.image_gradient(gy, gl, *options, *kept)
        return [y, log_slope, *gradients, *spline.inverse(x, phi, *options, with_slope=True)]

    return made_by(splines), made_by(spline_operations)
