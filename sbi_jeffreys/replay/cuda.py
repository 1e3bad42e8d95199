"""Recordings on a GPU: CUDA graphs, and what cannot be one. One is made at a time.

References:
    Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021),
    https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

__all__ = ["new_pool", "no_waiting", "record"]

_T = TypeVar("_T")


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


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all of a device is recorded: products keep memory for each."""
    return torch.cuda.Stream(device)
