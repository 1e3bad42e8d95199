"""Whether a device has the kernels (:mod:`sbi_jeffreys.kernels`), which are written in Triton.

Triton comes with torch where torch knows GPUs, on Linux. It needs a C compiler there when a kernel
is used for the first time, and remembers what it has made of one. Without any of it, or with a
version before 3.2, which makes single precision of constants, all is done by operations of torch.
"""

import functools
import logging
from types import ModuleType

import torch
from torch import Tensor

from . import spline_operations

__all__ = ["usable"]

_DTYPES = {torch.float32, torch.float64}
_OLDEST = (3, 2)
# Between two ways to the same float32 numbers of order one.
_CLOSE = 1e-3


def usable(*tensors: Tensor) -> bool:
    """Return whether kernels can work on these tensors: of a kind that they know, in one place."""
    first, *others = tensors
    if not (first.is_cuda and first.dtype in _DTYPES):
        return False
    alike = all(t.device == first.device and t.dtype == first.dtype for t in others)
    return alike and _work_on(first.device)


@functools.cache
def _work_on(device: torch.device) -> bool:
    """Compile the kernels for a device, and return whether they say there what operations say."""
    try:
        pairs = zip(*_tried(device), strict=True)
        return all(torch.allclose(*pair, rtol=_CLOSE, atol=_CLOSE) for pair in pairs)
    except Exception:
        # No Triton, no compiler, a device that it does not know: there is another way.
        logging.getLogger(__name__).info("No kernels on %s.", device, exc_info=True)
        return False


@torch.no_grad()
def _tried(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return what kernels and operations make of some numbers."""
    # Not before there is a device that may have them: Triton takes a while to import.
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST:
        raise ImportError(f"Triton {triton.__version__} is older than {_OLDEST}.")
    from ..kernels import splines

    generator = torch.Generator().manual_seed(0)
    x, gy, gl = (3 * torch.randn(3, 2, 40, generator=generator)).to(device)
    phi = torch.randn(2, 14, 40, generator=generator).to(device)
    options = 5.0, 1e-3

    def made_by(spline: ModuleType) -> list[Tensor]:
        y, log_slope, *kept = spline.image(x, phi, *options)
        gradients = spline.image_gradient(gy, gl, *options, *kept)
        return [y, log_slope, *gradients, *spline.inverse(x, phi, *options, with_slope=True)]

    return made_by(splines), made_by(spline_operations)
