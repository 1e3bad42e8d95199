"""Networks and priors whose code is known to do the same in each step of a training.

A recording repeats what torch was asked to do, and nothing that Python does beside it: a user's
network or prior may count, look at a clock or draw numbers of its own. Code of torch, sbi, zuko and
of this package does nothing of the kind, if nobody has hooked into it.
"""

import types
from typing import Any

from torch import nn
from torch.distributions import Distribution

__all__ = ["is_known_distribution", "is_known_network"]

_PACKAGES = {"builtins", "nflows", "pyknos", "sbi", "torch", "zuko", __package__}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_post_accumulate_grad_hooks",
)


def is_known_network(network: nn.Module) -> bool:
    """Return whether all of a network's modules are known, and none of them has a hook."""
    return all(map(_is_known_module, network.modules())) and not any(
        map(_is_hooked, network.parameters())
    )


def is_known_distribution(distribution: Distribution) -> bool:
    """Return whether a distribution is known, and all that it is made of."""
    return _is_known_part(distribution)


def _is_known_module(module: nn.Module) -> bool:
    # A forward of an instance's own is no class's.
    return _is_of_known_package(module) and "forward" not in vars(module) and not _is_hooked(module)


def _is_hooked(owner: Any) -> bool:
    return any(getattr(owner, name, None) for name in _HOOKS)


def _is_known_part(part: Any) -> bool:
    if isinstance(part, list | tuple):
        return all(map(_is_known_part, part))
    if isinstance(part, types.FunctionType | types.MethodType) or not _is_of_known_package(part):
        return False
    return not isinstance(part, Distribution) or all(map(_is_known_part, vars(part).values()))


def _is_of_known_package(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] in _PACKAGES
