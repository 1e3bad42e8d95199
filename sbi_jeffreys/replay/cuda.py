"""Recordings on a GPU: CUDA graphs, and what cannot be one. One is made at a time.

References:
    Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021),
    https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import contextlib
import functools
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..utils.seeding import forked

__all__ = [
    "ONE_AT_A_TIME",
    "Repeated",
    "new_pool",
    "no_waiting",
    "on_its_way",
    "record",
    "side_by_side",
]

_T = TypeVar("_T")

ONE_AT_A_TIME = threading.RLock()
"""For whoever records: threads share a device's stream of recordings."""


def new_pool() -> Any:
    """Return memory for recordings, which may write where those made later have their results."""
    return torch.cuda.graph_pool_handle()


def record(
    function: Callable[[], _T], pool: Any, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, _T]:
    """Return the recording of a function, which it does not run, and what the function returned."""
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[device.index]
    random = generator.clone_state()
    # What it frees may be another recording, and that cannot be while one is made.
    collects = gc.isenabled()
    gc.disable()
    try:
        # The outer one restores the stream if a recording fails. Of other threads only what they do
        # with this recording is an error.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool, _stream(device), capture_error_mode="thread_local"),
        ):
            return graph, function()
    except BaseException:
        # It would go on to wait for the recording's numbers.
        generator.graphsafe_set_state(random)
        raise
    finally:
        if collects:
            gc.enable()


def on_its_way(tensor: Tensor) -> Callable[[], Tensor]:
    """Return what waits for the present values of a tensor, and returns them on the CPU."""
    found = tensor.to("cpu", non_blocking=True)
    there = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> Tensor:
        there.synchronize()
        return found

    return arrived


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Let it be an error to wait for the device; on the stream of recordings, to set it up."""
    mode, stream = torch.cuda.get_sync_debug_mode(), _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with warnings.catch_warnings():
        # That this mode is a prototype.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream(device).wait_stream(stream)


class Repeated:
    """A function that is called again and again: after the first call it is recorded.

    What cannot be recorded is called as it is.

    Args:
        function: Has no arguments, works on what stays where it is, and returns tensors.
        device: Where it works.
    """

    def __init__(self, function: Callable[[], tuple[Tensor, ...]], device: torch.device) -> None:
        self._function, self._device = function, device
        self._calls = 0
        self._recording: tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]] | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Return what the function returns."""
        # In the first call it sets up what it needs.
        if self._calls == 1:
            self._record()
        self._calls += 1
        if self._recording is None:
            return self._function()
        graph, results = self._recording
        graph.replay()
        return tuple(result.clone() for result in results)

    def _record(self) -> None:
        # If it is wrong in itself, it fails again.
        with contextlib.suppress(Exception), ONE_AT_A_TIME:
            with forked(self._device), no_waiting(self._device):
                self._function()
            self._recording = record(self._function, new_pool(), self._device)


def side_by_side(
    one: Callable[..., _T], other: Callable[..., tuple[Any, ...]], shared: tuple[Tensor, ...]
) -> tuple[_T, tuple[Any, ...]]:
    """Return what two functions make of tensors; a recording does both at the same time.

    What few rows ask of a GPU leaves most of it idle.

    Args:
        one: Returns anything.
        other: Returns a tuple of tensors, or ``None`` for some. It must use no other tensors than
            these and such as stay, like weights.
        shared: Arguments of both.
    """
    if not (shared[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        return one(*shared), other(*shared)
    device = shared[0].device
    here, beside = torch.cuda.current_stream(device), _stream(device, 1)
    ready = here.record_event()
    # The first one first, so that it has the random numbers that it would have.
    found = one(*shared)
    beside.wait_event(ready)
    with torch.cuda.stream(beside):
        # Each stream has memory of its own, which it uses again without looking at the other. So
        # what passes from one to the other is copied at once.
        found_beside = other(*(tensor.clone() for tensor in shared))
    here.wait_stream(beside)
    return found, tuple(None if t is None else t.clone() for t in found_beside)


@functools.cache
def _stream(device: torch.device, number: int = 0) -> torch.cuda.Stream:
    """Return the stream on which all of a device is recorded, or, by number 1, what is beside it.

    They are the same ones each time: products keep memory for each.
    """
    return torch.cuda.Stream(device)
