"""Operations of torch on a CPU, recorded once and then done again: a CUDA graph for CPUs.

A step of training comes down to two thousand operations, most of them on a few kilobytes. What
Python, modules and autograd do around them takes as long as they do. A :class:`Recording` does the
operations alone, one after the other (:mod:`sbi_jeffreys.replay.line`), each into memory that stays
where it is, and views of it with it. What it leaves is what the function would leave that was
recorded, to the bit.

As with CUDA graphs, nothing of Python's runs again. What goes in differently each time goes in by
tensors that are written to; random numbers come from torch's generator, as they would; what depends
on values (a branch, the size of a result) is refused, as far as torch's operations tell. A few
operations take another way while somebody listens, and may round otherwise (``svdvals``, the
gradient of ``prod``): :mod:`sbi_jeffreys.training.graphs` compares before it uses a recording.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..utils.seeding import forked
from .line import Line
from .operations import EMPTY
from .recorder import (
    Call,
    Memory,
    Place,
    Recorder,
    StayInTorch,
    replaced,
    tensors_in,
)
from .written import Done, written_to

__all__ = ["Pool", "Recording", "Repeated", "record"]

_T = TypeVar("_T")


class Pool:
    """Memory that recordings share, of which one runs at a time."""

    def __init__(self) -> None:
        self._all: dict[int, list[torch.UntypedStorage]] = defaultdict(list)
        self.begin()

    def begin(self) -> None:
        """Let all of it be free, for another recording."""
        self._free = {size: list(storages) for size, storages in self._all.items()}

    def take(self, size: int) -> torch.UntypedStorage:
        """Return free memory of this size in bytes."""
        if self._free.get(size):
            return self._free[size].pop()
        storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        self._all[size].append(storage)
        return storage

    def give_back(self, storage: torch.UntypedStorage) -> None:
        """Let memory be free again; the next to ask for this size gets it, while it is cached."""
        self._free.setdefault(storage.nbytes(), []).append(storage)


class Recording:
    """Operations that can be done again.

    Args:
        recorder: What has noted them.
        result: What they were done for: its tensors stay where they are, each replay writes there.
        pool: Where all other memory comes from.

    Attributes:
        changes: What was there before, and is written to.
    """

    def __init__(self, recorder: Recorder, result: Any, pool: Pool) -> None:
        self.changes = recorder.changed
        calls: list[Done] = []
        self._tensors: dict[Any, Tensor] = {}
        for tensor in tensors_in(result):
            memory = recorder.memory_of(tensor)
            if memory is not None:
                memory.storage, memory.constant = tensor.untyped_storage(), False
        pool.begin()
        until: dict[int, list[Memory]] = defaultdict(list)
        for number, call in enumerate(recorder.calls):
            for place in call.results:
                if place is not None and place.memory.storage is None:
                    place.memory.storage = pool.take(place.memory.size)
                    until[place.memory.last].append(place.memory)
            calls += self._done_again(call)
            for memory in until.pop(number, ()):
                assert memory.storage is not None
                pool.give_back(memory.storage)
        self._tensors.clear()
        self._line = Line(calls)

    @torch.no_grad()
    def replay(self) -> None:
        """Do all of it again."""
        self._line.run()

    def _tensor(self, place: Place) -> Tensor:
        """Return the tensor at a place, the same one each time."""
        storage = place.memory.storage
        assert storage is not None
        key = storage._cdata, *place[1:]
        if key not in self._tensors:
            made = torch.empty(0, dtype=place.dtype)
            self._tensors[key] = made.set_(storage, place.offset, place.size, place.stride)
        return self._tensors[key]

    def _done_again(self, call: Call) -> list[Done]:
        """Return what does a call again, into memory that is there."""
        operation, made = call.operation, [p for p in call.results if p is not None]
        if made and (operation in EMPTY or all(p.memory.constant for p in made)):
            return []
        args = replaced(Place, self._tensor, call.args)
        kwargs = replaced(Place, self._tensor, call.kwargs)
        where = [None if place is None else self._tensor(place) for place in call.results]
        return written_to(where, operation, args, kwargs)


def record(function: Callable[[], _T], pool: Pool) -> tuple[Recording, _T]:
    """Return the recording of a function, and what the function returned.

    The function runs, and what it has changed is undone: torch's random numbers, and what
    operations of torch have written to. What Python has assigned stays, such as the gradients of
    parameters, which are then the recording's.

    Args:
        function: Returns tensors, in lists, tuples and dictionaries.
        pool: Memory to share with other recordings.

    Raises:
        RuntimeError: If it cannot be recorded; and whatever the function raises.
    """
    recorder = Recorder()
    try:
        with forked(), StayInTorch(), recorder:
            result = function()
    finally:
        recorder.undo()
    return Recording(recorder, result, pool), result


class Repeated:
    """A function that is called again and again: on a CPU it is recorded after the first calls.

    What cannot be recorded is called as it is.

    Args:
        function: Has no arguments, works on what stays where it is, and returns tensors.
        before: Calls before it is recorded; ``None`` for never.
    """

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], before: int | None) -> None:
        self._function, self._before = function, before
        self._recording: Recording | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Return what the function returns."""
        if self._recording is not None:
            self._recording.replay()
            return self._copies()
        if self._before is None or torch.is_anomaly_enabled():
            # What anomaly detection asks of gradients no recording has.
            return self._function()
        self._before -= 1
        if self._before >= 0:
            return self._function()
        return self._record()

    def _record(self) -> tuple[Tensor, ...]:
        self._before = None
        try:
            recording, self._results = record(self._function, Pool())
        except Exception:
            # If it is wrong in itself, it fails again.
            return self._function()
        # The function itself has the last word on what is left, whatever the recording does.
        before = [tensor.clone() for tensor in recording.changes]
        with forked():
            recording.replay()
        found = [*self._copies(), *(tensor.clone() for tensor in recording.changes)]
        with torch.no_grad():
            for tensor, value in zip(recording.changes, before, strict=True):
                tensor.copy_(value)
        expected = self._function()
        if all(map(torch.equal, found, (*expected, *recording.changes))):
            self._recording = recording
        return expected

    def _copies(self) -> tuple[Tensor, ...]:
        return tuple(result.clone() for result in self._results)
