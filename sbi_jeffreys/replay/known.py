"""Code that is known to do the same in each step of a training.

A recording repeats what torch was asked to do, and nothing that Python does beside it: a user's
network or prior may count, look at a clock or draw numbers of its own. Code of torch, sbi, zuko and
of this package does nothing of the kind, if nobody has hooked into it or handed it a function.
"""

import functools
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

__all__ = ["is_known"]

_PACKAGES = {
    "builtins",
    "collections",
    "functools",
    "nflows",
    "pyknos",
    "sbi",
    "torch",
    "zuko",
    __package__.partition(".")[0],
}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_post_accumulate_grad_hooks",
)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def is_known(thing: Any) -> bool:
    """Return whether a network or a prior is known, and all that it holds, down to its functions.

    Args:
        thing: What is looked into: its attributes, and theirs.
    """
    if any(getattr(torch_modules, name) for name in _GLOBAL_HOOKS):
        return False
    # By identity, and held: what is made on the way must not leave its identity to others.
    seen: dict[int, Any] = {}
    waiting = [thing]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if not _is_known_itself(part):
            return False
        waiting.extend(_held_by(part))
    return True


def _is_known_itself(part: Any) -> bool:
    if isinstance(part, np.ndarray | np.generic):
        # Numbers, and no code.
        return True
    # A function and a class say where they are from, all else is of its class.
    named = isinstance(part, types.FunctionType | types.BuiltinFunctionType | type)
    module = (part.__module__ if named else None) or type(part).__module__
    if module.partition(".")[0] not in _PACKAGES:
        return False
    # A forward of an instance's own is no class's.
    replaced = isinstance(part, nn.Module) and "forward" in vars(part)
    return not (replaced or any(getattr(part, name, None) for name in _HOOKS))


def _held_by(part: Any) -> Iterable[Any]:
    if isinstance(part, Tensor | type):
        return ()
    if isinstance(part, dict):
        return part.values()
    if isinstance(part, list | tuple | set | frozenset):
        return part
    if isinstance(part, functools.partial):
        return part.func, part.args, part.keywords
    if isinstance(part, types.MethodType):
        return part.__self__, part.__func__
    if isinstance(part, types.FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or ()]
        return *cells, part.__defaults__, part.__kwdefaults__
    return getattr(part, "__dict__", {}).values()
