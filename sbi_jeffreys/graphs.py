"""Steps of the training as CUDA graphs: recorded once, and then launched as a whole.

A step is a thousand small operations, which a GPU does in a tenth of the time that Python takes to
ask for them. So a step of each kind is taken as it is the first time, recorded the second time, and
replayed from then on. What differs from step to step goes in by tensors that stay where they are:
the batch and the multipliers. What is decided by numbers of Python's (whether all terms are
evaluated, which samples are left over, the sizes and the learning rates) tells the kinds apart.

A recording knows nothing of what Python does meanwhile, and cannot wait for the device. Whoever
does so (a prior of numpy, an embedding network that looks at its values) is found out before
anything is recorded, and the steps are then taken as on a CPU.

References:
    Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021),
    https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from .seeding import forked

if TYPE_CHECKING:
    from .steps import JointSteps

__all__ = ["Batch", "RecordedStep", "StepGraphs"]

Batch = tuple[Tensor, Tensor, Tensor]
"""theta (B, d), x (B, *event) and masks (B, 1)."""

_T = TypeVar("_T")


class _Graph(Protocol):
    def replay(self) -> None: ...


class RecordedStep:
    """A step of one kind, in two parts, between which it is seen whether all is finite.

    Args:
        steps: Whose step.
        batch: Batch of the size that all will have.
        whole: Whether the step evaluates all terms.
        pool: Memory that the graphs of a training share.
    """

    def __init__(self, steps: "JointSteps", batch: Batch, *, whole: bool, pool: Any) -> None:
        self._batch = [t.clone() for t in batch]
        self._multipliers = steps.dual.multipliers.to(batch[0])
        # A recording reads the samples that are left over from another where they are.
        self._before = list(steps.queue.sets)
        theta, x, masks = self._batch

        def gradient() -> Any:
            return steps.gradient((theta, x, masks), self._multipliers, whole=whole)

        self._gradient, (self._found, gradients) = _record(gradient, pool, batch[0].device)
        self._left = list(steps.queue.sets)
        steps.queue.sets = self._before.copy()
        self._descent, _ = _record(lambda: steps.descend(gradients), pool, batch[0].device)

    def gradient(self, steps: "JointSteps", batch: Batch) -> Tensor:
        """Return what :meth:`JointSteps.gradient` found for a batch."""
        for kept, new in zip(self._batch, batch, strict=True):
            kept.copy_(new)
        self._multipliers.copy_(steps.dual.multipliers.to(self._multipliers.dtype), True)
        self._gradient.replay()
        steps.queue.sets = self._left.copy()
        return self._found

    def descend(self) -> None:
        """Take the step of the optimizers."""
        self._descent.replay()


class StepGraphs:
    """The recorded steps of a training, by their kind."""

    def __init__(self) -> None:
        self._possible = True
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepGraphs":
        """Return an empty one: recordings work on tensors of the original."""
        return StepGraphs()

    def __reduce__(self) -> Any:
        return StepGraphs, ()

    def forget(self) -> None:
        """Forget what was recorded, and give the memory back."""
        self._seen: set[Any] = set()
        self._recorded: dict[Any, RecordedStep] = {}
        self._rates: list[float] = []
        self._pool: Any = None

    def find(self, steps: "JointSteps", batch: Batch, *, whole: bool) -> RecordedStep | None:
        """Return the recording of such a step, made now if need be; ``None`` if there is none.

        Args:
            steps: Whose step.
            batch: The batch.
            whole: Whether the step evaluates all terms.
        """
        if not (_on_gpu(batch[0]) and self._possible):
            return None
        sets = steps.queue.sets if whole else []
        kind = (whole, len(sets), *(t.shape for t in batch))
        if steps.rates != self._rates:
            # What was recorded has others. They also change where weights are put back, of which
            # some tensors are made anew.
            self.forget()
            self._rates = steps.rates
        if kind not in self._seen:
            # Optimizers, libraries and what remembers tensors set themselves up.
            self._seen.add(kind)
            return None
        key = kind, tuple(map(id, sets))
        if key not in self._recorded:
            self._possible = _never_waits(steps, batch, whole=whole)
            if not self._possible:
                return None
            if self._pool is None:
                self._pool = _new_pool()
            self._recorded[key] = RecordedStep(steps, batch, whole=whole, pool=self._pool)
        return self._recorded[key]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _new_pool() -> Any:
    return torch.cuda.graph_pool_handle()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all of a device is recorded: products keep memory for each."""
    return torch.cuda.Stream(device)


def _record(function: Callable[[], _T], pool: Any, device: torch.device) -> tuple[_Graph, _T]:
    """Return the recording of a function, which it does not run, and what the function returned."""
    graph = torch.cuda.CUDAGraph()
    # Of other threads only what they do with this recording is an error.
    with torch.cuda.graph(graph, pool, _stream(device), capture_error_mode="thread_local"):
        result = function()
    return graph, result


def _never_waits(steps: "JointSteps", batch: Batch, *, whole: bool) -> bool:
    """Return whether a step's gradient can be had without waiting for the device.

    A recording that fails half-way leaves torch's random numbers unusable, so this is tried first.
    """
    sets, buffers = steps.queue.sets.copy(), list(steps.estimator.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        with forked(batch[0].device), _no_waiting(batch[0].device):
            steps.gradient(batch, steps.dual.multipliers.tolist(), whole=whole)
    except Exception:
        # Whatever a prior or a network makes of it; what is wrong otherwise is wrong once more.
        return False
    finally:
        steps.queue.sets = sets
        for buffer, value in zip(buffers, before, strict=True):
            # The statistics of a batch normalisation, for one. What stays as it is is not written
            # to: some of it is remembered as unchanged.
            if not torch.equal(buffer, value):
                buffer.copy_(value)
    return True


@contextlib.contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
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
