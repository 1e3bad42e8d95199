"""Steps of the training as CUDA graphs: recorded once, and then launched as a whole.

A step is a thousand small operations, which a GPU does in a tenth of the time that Python takes to
ask for them. So a step of each kind is taken as it is the first time, recorded the second time, and
replayed from then on. What differs from step to step goes in by tensors that stay where they are:
the batch and the multipliers. What is decided by numbers of Python's (whether all terms are
evaluated, which samples are left over, the sizes and the learning rates) tells the kinds apart.

A recording knows nothing of what Python does meanwhile, and cannot wait for the device. Whoever
does so (a prior of numpy, an embedding network that looks at its values) is found out before
anything is recorded, and the steps are then taken as on a CPU. While that is tried, for one step,
waiting is an error to other threads, too.

References:
    Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021),
    https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

import contextlib
import functools
import threading
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

# Recordings of a training at most: batches of ever new sizes are not worth it.
_MOST = 32
# Threads share the device's stream of recordings.
_ONE_AT_A_TIME = threading.Lock()


class _Graph(Protocol):
    def replay(self) -> None: ...


class RecordedStep:
    """A step of one kind, in two parts, between which it is seen whether all is finite.

    Args:
        steps: Whose step.
        batch: Batch of the size that all will have.
        whole: Whether the step evaluates all terms; only then it takes samples from the queue.
        pool: Memory that the recordings of such steps share.
    """

    def __init__(self, steps: "JointSteps", batch: Batch, *, whole: bool, pool: Any) -> None:
        self._batch = [t.clone() for t in batch]
        self._multipliers = steps.dual.multipliers.to(batch[0])
        theta, x, masks = self._batch

        def gradient() -> Any:
            return steps.gradient((theta, x, masks), self._multipliers, whole=whole)

        # What is left over from another recording is read where it is, and has to stay there.
        self._before = list(steps.queue.sets) if whole else []
        with _queue_kept(steps):
            self._gradient, (self._found, gradients) = _record(gradient, pool, theta.device)
            self._left = list(steps.queue.sets) if whole else None
        self._descent, _ = _record(lambda: steps.descend(gradients), pool, theta.device)

    def gradient(self, steps: "JointSteps", batch: Batch) -> Tensor:
        """Return what :meth:`JointSteps.gradient` found for a batch."""
        for kept, new in zip(self._batch, batch, strict=True):
            kept.copy_(new)
        self._multipliers.copy_(steps.dual.multipliers.to(self._multipliers.dtype), True)
        self._gradient.replay()
        if self._left is not None:
            steps.queue.sets = self._left.copy()
        return self._found

    def descend(self) -> None:
        """Take the step of the optimizers."""
        self._descent.replay()


class StepGraphs:
    """The recorded steps of a training, by their kind.

    Attributes:
        possible: Whether steps are recorded, where there is a GPU.
    """

    def __init__(self) -> None:
        self.possible = True
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepGraphs":
        """Return an empty one: recordings work on tensors of the original."""
        return StepGraphs()

    def __reduce__(self) -> Any:
        return StepGraphs, ()

    def forget(self) -> None:
        """Forget what was recorded, so that its memory can be used for other things."""
        self._seen: set[Any] = set()
        self._recorded: dict[Any, RecordedStep] = {}
        self._rates: list[float] = []
        self._pools: dict[bool, Any] = {}

    def find(self, steps: "JointSteps", batch: Batch, *, whole: bool) -> RecordedStep | None:
        """Return the recording of such a step, made now if need be; ``None`` if there is none.

        Args:
            steps: Whose step.
            batch: The batch.
            whole: Whether the step evaluates all terms.
        """
        if not (_on_gpu(batch[0]) and self.possible):
            return None
        sets = steps.queue.sets if whole else []
        kind = (whole, len(sets), *(t.shape for t in batch))
        if steps.rates != self._rates:
            # What was recorded has others. They also change where weights are put back, of which
            # some tensors are made anew.
            self.forget()
            self._rates = steps.rates
        key = kind, tuple(map(id, sets))
        if key in self._recorded:
            return self._recorded[key]
        if kind not in self._seen:
            # Optimizers, libraries and what remembers tensors set themselves up.
            self._seen.add(kind)
        elif len(self._recorded) < _MOST:
            self._try_to_record(key, steps, batch, whole=whole)
        return self._recorded.get(key)

    def _try_to_record(self, key: Any, steps: "JointSteps", batch: Batch, *, whole: bool) -> None:
        # Steps of the flow alone come between those that leave samples and those that use them, and
        # must not write where these are.
        if whole not in self._pools:
            self._pools[whole] = _new_pool()
        pool = self._pools[whole]
        try:
            with _ONE_AT_A_TIME:
                self.possible = _never_waits(steps, batch, whole=whole)
                if self.possible:
                    made = RecordedStep(steps, batch, whole=whole, pool=pool)
                    self._recorded[key] = made
        except Exception:
            # No memory, or what waits unseen; if it is wrong in itself, it will fail again.
            self.possible = False
        if not self.possible:
            self.forget()


@contextlib.contextmanager
def _queue_kept(steps: "JointSteps") -> Iterator[None]:
    """Put the samples back that are in the queue now, also on Ctrl-C."""
    sets = steps.queue.sets.copy()
    try:
        yield
    finally:
        steps.queue.sets = sets


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


def _never_waits(steps: "JointSteps", batch: Batch, *, whole: bool) -> bool:
    """Return whether a step's gradient can be had without waiting for the device.

    It is tried before it is recorded, since a failure is harmless here.
    """
    buffers = list(steps.estimator.buffers())
    before = [buffer.clone() for buffer in buffers]
    device = batch[0].device
    try:
        with _queue_kept(steps), forked(device), _no_waiting(device):
            steps.gradient(batch, steps.dual.multipliers.tolist(), whole=whole)
    except Exception:
        # Whatever a prior or a network makes of it.
        return False
    finally:
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
