"""A recorder of operations, in place of CUDA graphs where there is no GPU.

What was recorded is replayed on the tensors of the recording: nothing of Python's runs again, and
what an operation returns ends where the recording had it. As with CUDA graphs, recording itself
changes nothing, and must not wait for the device. Recordings of a pool share its memory: one may
write, when it is replayed, where those that were made after it have left their results.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import ASKING
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbi_jeffreys.replay import cuda
from sbi_jeffreys.training import steps
from sbi_jeffreys.utils.seeding import forked

__all__ = ["Recording", "go_ahead", "record"]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _made(args: Any, kwargs: Any, result: Any) -> list[bool]:
    """Return which of the tensors that an operation returned are no views of those it was given."""
    given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
    return [t.untyped_storage().data_ptr() not in given for t in _tensors(result)]


class Recording(TorchDispatchMode):
    """Operations, with what they work on and what they have returned."""

    def __init__(self, pool: "list[Recording] | None" = None) -> None:
        super().__init__()
        self.pool = [] if pool is None else pool
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in ASKING:
            raise RuntimeError(f"{func} waits for the device")
        if func is torch.ops.aten.native_batch_norm.default:
            # Changes its running statistics, which its schema does not say.
            self.before += [(t, t.clone()) for t in args[3:5]]
        arguments = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
        for a in func._schema.arguments:
            if a.alias_info is not None and a.alias_info.is_write:
                for tensor in _tensors((arguments | kwargs).get(a.name)):
                    self.before.append((tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        """Undo what recording has changed."""
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)

    @torch.no_grad()
    def poison(self) -> None:
        """Write over what it has made."""
        for _, args, kwargs, result in self.operations:
            for tensor, fresh in zip(_tensors(result), _made(args, kwargs, result), strict=True):
                if fresh and tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        for later in self.pool[self.pool.index(self) + 1 :] if self in self.pool else []:
            later.poison()
        for func, args, kwargs, result in self.operations:
            made = _made(args, kwargs, result)
            changes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
            if not (changes or any(made)):
                # A view is there already.
                continue
            again = func(*args, **kwargs)
            for old, new, fresh in zip(_tensors(result), _tensors(again), made, strict=True):
                if fresh:
                    old.detach().copy_(new)


def record(function: Callable[[], Any], pool: Any, device: Any) -> tuple[Recording, Any]:
    """Take the place of the function of this name."""
    recording = Recording(pool)
    try:
        with forked(), recording:
            result = function()
    finally:
        recording.undo()
    recording.pool.append(recording)
    return recording, result


def go_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps be taken as on a GPU: the next one before it is known what the last has found."""

    def on_its_way(tensor: Tensor) -> Callable[[], Tensor]:
        found = tensor.clone()
        return lambda: found

    monkeypatch.setattr(steps, "on_gpu", lambda device: True)
    monkeypatch.setattr(cuda, "on_its_way", on_its_way)
