"""Whether torch.func is at work: gradients that are written out are for torch.autograd alone."""

import torch

__all__ = ["within_torch_func"]


def within_torch_func() -> bool:
    """Return whether this runs within ``torch.func.grad``, ``vmap`` or another of their kind.

    They differentiate, and vectorise, the operations that they see, and refuse a
    ``torch.autograd.Function`` that keeps what is no output of its own, as fast ones do. torch has
    no other name for this question than the one by which its own functions ask it.

    Example:
        >>> torch.func.vmap(lambda x: x + within_torch_func())(torch.zeros(2))
        tensor([1., 1.])
        >>> within_torch_func()
        False
    """
    return torch._C._are_functorch_transforms_active()
