"""Listens to the operations of torch that a function comes down to, below modules and autograd.

What it notes is a straight line of calls (:class:`Call`), from which
:class:`~sbi_jeffreys.replay.cpu.Recording` makes something that can be run again. Tensors in
memory that was there before stand in it as they are. Those in memory that an operation has made
stand in it as places (:class:`Place`): nothing is kept from being freed meanwhile, and it is known
from when to when memory is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .operations import LIKE, WITH_STATISTICS, Operation, kind_of, written_by

__all__ = [
    "Call",
    "Memory",
    "Place",
    "Recorder",
    "StayInTorch",
    "replaced",
    "tensors_in",
]

_aten = torch.ops.aten
# What gives values to others than torch.
_LEAVING = {
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.data_ptr,
    Tensor.numpy,
    Tensor.tolist,
}


@dataclass(eq=False)
class Memory:
    """Memory that an operation has made.

    Attributes:
        size: Bytes.
        last: Number of the last call that works on it.
        reference: Keeps its identity, not what is in it, from being given away.
        storage: Where it is when the calls are made again.
        constant: Whether it holds the same each time, and is there to stay.
    """

    size: int
    last: int
    reference: StorageWeakRef
    storage: torch.UntypedStorage | None = None
    constant: bool = False


class Place(NamedTuple):
    """A tensor in such memory."""

    memory: Memory
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Call(NamedTuple):
    """An operation, with places instead of tensors in memory that was made on the way.

    ``results`` are the tensors that it returned, ``None`` for those in memory that was there;
    ``writes`` says whether it writes to what it is given.
    """

    operation: Operation
    args: Any
    kwargs: Any
    results: list[Place | None]
    writes: bool


class Recorder(TorchDispatchMode):
    """Notes the operations that are done while it is entered.

    Attributes:
        calls: What was called, but for views and what profilers are told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._memories: dict[int, Memory] = {}
        # What was there before: it must not be freed, or its identity could be another's.
        self._held: dict[int, torch.UntypedStorage] = {}
        self._before: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return whether torch is to import its compiler (1.4 s) to keep it out of here: no."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do an operation, and note it.

        Raises:
            RuntimeError: If what it does depends on values, or cannot be done again in place.
        """
        kwargs = kwargs or {}
        if func is _aten.lift_fresh.default:
            return self._note_literal(func(*args))
        # Who works on a view works on the memory that it is of.
        if kind_of(func).view or func.namespace == "profiler":
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        _refuse(func, args, kwargs, given)
        written = _written(func, args, kwargs)
        for tensor in written:
            self._note_change(tensor)
        sizes = [tensor.shape for tensor in written]
        noted = replaced(Tensor, self._note, args), replaced(Tensor, self._note, kwargs)
        result = func(*args, **kwargs)
        resized = sizes != [tensor.shape for tensor in written]
        if resized or not all(tensor.is_cpu for tensor in tensors_in(result)):
            raise RuntimeError(f"{func} cannot be recorded.")
        results = self._note_results(func, given, result)
        # What returns nothing has checked something.
        if written or any(results) or not results:
            self.calls.append(Call(func, *noted, results, bool(written)))
        return result

    def undo(self) -> None:
        """Undo what the operations have changed of what was there before."""
        for tensor, value in reversed(self._before):
            tensor.copy_(value)

    @property
    def changed(self) -> list[Tensor]:
        """What was there before and was written to, each once."""
        first: dict[Any, Tensor] = {}
        for tensor, _ in self._before:
            where = _identity(tensor), tensor.storage_offset(), tensor.size(), tensor.stride()
            first.setdefault(where, tensor)
        return list(first.values())

    def memory_of(self, tensor: Tensor) -> Memory | None:
        """Return the memory of a tensor, if an operation has made it."""
        return self._memories.get(_identity(tensor))

    def _note(self, tensor: Tensor) -> "Place | Tensor":
        memory = self.memory_of(tensor)
        if memory is None:
            self._held[_identity(tensor)] = tensor.untyped_storage()
            return tensor.detach()
        memory.last = len(self.calls)
        return _place(memory, tensor)

    def _note_change(self, tensor: Tensor) -> None:
        memory = self.memory_of(tensor)
        if memory is None:
            self._before.append((tensor.detach(), tensor.detach().clone()))
        else:
            memory.constant = False

    def _note_literal(self, tensor: Tensor) -> Tensor:
        """Note what ``torch.tensor`` has made of numbers: its memory may be written to."""
        values = tensor.detach().clone()
        results = self._note_results(_aten.clone.default, [], tensor)
        self.calls.append(Call(_aten.clone.default, [values], {}, results, False))
        return tensor

    def _note_results(
        self, func: Operation, given: list[Tensor], result: Any
    ) -> list[Place | None]:
        there = {_identity(tensor) for tensor in given}
        constant = (func in LIKE or not given) and not kind_of(func).random
        results: list[Place | None] = []
        for tensor in tensors_in(result):
            if _identity(tensor) in there:
                results.append(None)
                continue
            memory = self.memory_of(tensor)
            if memory is None:
                storage = tensor.untyped_storage()
                memory = Memory(storage.nbytes(), len(self.calls), StorageWeakRef(storage))
                if constant:
                    memory.constant, memory.storage = True, storage
                self._memories[_identity(tensor)] = memory
            results.append(_place(memory, tensor))
        return results


class StayInTorch(TorchFunctionMode):
    """Refuses, while it is entered, to give values to numpy and others, whom nobody records."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch.

        Raises:
            RuntimeError: If it gives values away.
        """
        if func in _LEAVING:
            raise RuntimeError(f"{func.__name__} cannot be recorded.")
        return func(*args, **(kwargs or {}))


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for branch in tree for tensor in tensors_in(branch)]


def replaced(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """Return an operation's arguments with a function of those of a kind in their place."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {name: replaced(kind, function, value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [replaced(kind, function, value) for value in tree]
    return tree


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(memory: Memory, tensor: Tensor) -> Place:
    offset = int(tensor.storage_offset())
    return Place(memory, tensor.dtype, tensor.size(), tensor.stride(), offset)


def _refuse(
    func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
) -> None:
    """Raise RuntimeError if an operation cannot be recorded; ``given`` are its tensors."""
    refused = kind_of(func).refused
    if func is _aten.index.Tensor:
        # Only masks make a result whose size depends on values.
        refused = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    # Torch's own generator is put back after recording, others are not.
    owns = isinstance(kwargs.get("generator"), torch.Generator)
    odd = any(t.is_conj() or t.is_neg() or not t.is_cpu for t in given)
    if refused or owns or odd:
        raise RuntimeError(f"{func} cannot be recorded.")


def _written(func: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    written = tensors_in(args[3:5]) if func in WITH_STATISTICS else []
    for position, name in written_by(func):
        written += tensors_in(args[position] if position < len(args) else kwargs.get(name))
    return written
