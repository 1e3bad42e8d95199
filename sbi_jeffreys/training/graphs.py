"""Steps of the training, recorded once and then done again without Python.

A step is two thousand small operations, which take a GPU a tenth of the time that Python needs to
ask for them, and a CPU as long as that. So the first steps of each kind are taken as they are, the
next one is recorded, and from then on it is replayed: on a GPU as a CUDA graph
(:mod:`sbi_jeffreys.replay.cuda`), on a CPU by :mod:`sbi_jeffreys.replay.cpu`. What differs
from step to step goes in by tensors that stay where they are: the batch and the multipliers. What
is decided by numbers of Python's (whether all terms are evaluated, which samples are left over, the
sizes) tells the kinds apart. Where the learning rates change, the step of the optimizers, the
second part of a recording, is recorded anew.

A recording knows nothing of what Python does meanwhile. On a CPU, steps with a prior, a network or
a kernel of a user's own are not recorded (:mod:`sbi_jeffreys.replay.known`), and what the
recording finds for other data is compared with what a step finds. On a GPU a step that
waits for the device is not recorded. To find out, one step runs while waiting is an error (torch's
sync debug mode, which is the whole process's: other threads see it, too). Steps that are not
recorded are taken as they are.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..replay import cpu, cuda
from ..replay.known import is_known
from ..utils.seeding import forked
from .batches import Data, LoaderData, ones

if TYPE_CHECKING:
    from .descent import Gradients
    from .steps import JointSteps

__all__ = ["Batch", "RecordedStep", "StepGraphs", "nothing_recorded", "on_gpu"]

Batch = tuple[Tensor, Tensor, Tensor]
"""theta (B, d), x (B, *event) and masks (B, 1)."""

_T = TypeVar("_T")

# Recordings of a training at most: batches of ever new sizes are not worth it.
_MOST = 32
# Steps of a kind before it is recorded. In the first, optimizers, libraries and what remembers
# tensors set themselves up; on a CPU, to record a step takes as long as is saved in thirty.
_BEFORE = {"cpu": 20, "cuda": 1}
# The same where a run is known to be long.
_SOON = 4
# With more held-out rows than these, operations are so large that nothing but memory is at stake.
_FEW_ROWS = 2000
_RECORDS = ContextVar("_RECORDS", default=True)


class _Recording(Protocol):
    def replay(self) -> None: ...


class RecordedStep:
    """A step of one kind, in two parts, between which a CPU looks whether all is finite.

    Args:
        steps: Whose step.
        batch: Batch of the size that all will have.
        whole: Whether the step evaluates all terms; only then it takes samples from the queue.
        pool: Memory that the recordings of such steps share.

    Attributes:
        gradients: Where :meth:`gradient` leaves them, and :meth:`descend` looks for them.
        rates: Learning rates that :meth:`descend` has.
    """

    def __init__(self, steps: "JointSteps", batch: Batch, *, whole: bool, pool: Any) -> None:
        self._batch = [t.clone() for t in batch]
        self._multipliers = steps.dual.multipliers.to(batch[0], copy=True)
        theta, x, masks = self._batch

        def gradient() -> Any:
            found = steps.gradient((theta, x, masks), self._multipliers, whole=whole)
            return *found, steps.queue.sets.copy()

        # What is left over from another recording is read where it is, and has to stay there.
        self._before = list(steps.queue.sets) if whole else []
        with _queue_kept(steps):
            self._gradient, made = _record(gradient, pool, theta.device)
            self._found, self.gradients, left = made
            self._left = left if whole else None
        parameters = [p for optimizer in steps.optimizers for p in optimizer.parameters]
        self._parameters = [(p, p.grad) for p in parameters]
        self._pool = pool
        self.record_descent(steps)

    def record_descent(self, steps: "JointSteps") -> None:
        """Record the step of the optimizers at the rates that they have now."""
        for parameter, gradient in self._parameters:
            parameter.grad = gradient
        descend = partial(steps.descend, self.gradients)
        self._descent, _ = _record(descend, self._pool, self._batch[0].device)
        self.rates = steps.rates

    def gradient(self, steps: "JointSteps", batch: Batch) -> Tensor:
        """Return what :meth:`JointSteps.gradient` found for a batch."""
        torch._foreach_copy_(self._batch, list(batch))
        multipliers = steps.dual.multipliers.to(self._multipliers.dtype)
        if self._multipliers.is_cuda:
            # Who copies from other memory may wait for the device.
            multipliers = multipliers.pin_memory()
        self._multipliers.copy_(multipliers, non_blocking=True)
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
        possible: Whether steps are recorded.
        soon: Whether to record early: the run will be long.
    """

    def __init__(self) -> None:
        self.possible, self.soon = True, False
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepGraphs":
        """Return an empty one: recordings work on tensors of the original."""
        return StepGraphs()

    def __reduce__(self) -> Any:
        return StepGraphs, ()

    def forget(self) -> None:
        """Forget what was recorded, so that its memory can be used for other things."""
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, RecordedStep] = {}
        self._pools: dict[bool, Any] = {}
        # What looks at held-out rows, and the rows.
        self._looks: dict[str, tuple[cpu.Repeated | cuda.Repeated, Data | LoaderData]] = {}

    def find(self, steps: "JointSteps", batch: Batch, *, whole: bool) -> RecordedStep | None:
        """Return the recording of such a step, made now if need be; ``None`` if there is none.

        Args:
            steps: Whose step.
            batch: The batch.
            whole: Whether the step evaluates all terms.
        """
        before = self._before(batch[0].device)
        if before is None or not self.possible:
            return None
        sets = steps.queue.sets if whole else []
        kind = (whole, len(sets), *((t.shape, t.dtype) for t in batch))
        key = kind, tuple(map(id, sets))
        if key not in self._recorded:
            if self._seen[kind] < before:
                self._seen[kind] += 1
            elif len(self._recorded) < _MOST:
                self._try_to_record(key, steps, batch, whole=whole)
        found = self._recorded.get(key)
        if found is not None and found.rates != steps.rates:
            self._attempt(partial(found.record_descent, steps))
        return found if self.possible else None

    def held_out(
        self,
        steps: "JointSteps",
        look: Callable[[], tuple[Tensor, ...]],
        data: Data | LoaderData,
        name: str = "losses",
    ) -> tuple[Tensor, ...]:
        """Return what a look at held-out rows returns, which is recorded as steps are.

        Args:
            steps: Whose.
            look: Looks at them.
            data: The rows.
            name: What it looks at. On a CPU only losses are looked at often enough.
        """
        few = isinstance(data, Data) and len(data.rows) <= _FEW_ROWS
        # The atomic loss of later rounds is code of sbi's, and draws its atoms.
        if not few or steps.forward_loss is not None:
            return look()
        found = self._looks.get(name)
        if found is None or found[1] is not data:
            device = steps.estimator.pool_weight.device
            if on_gpu(device):
                self._looks[name] = cuda.Repeated(look, device), data
            else:
                known = name == "losses" and _is_known(steps)
                before = self._before(device) if known else None
                self._looks[name] = cpu.Repeated(look, before), data
        return self._looks[name][0]()

    def _before(self, device: torch.device) -> int | None:
        # Who looks for NaN wants to see each operation.
        records = _RECORDS.get() and not torch.is_anomaly_enabled()
        before = _BEFORE.get(device.type) if records else None
        return before if before is None or not self.soon else min(before, _SOON)

    def _try_to_record(self, key: Any, steps: "JointSteps", batch: Batch, *, whole: bool) -> None:
        # Steps of the flow alone come between those that leave samples and those that use them, and
        # must not write where these are.
        if whole not in self._pools:
            self._pools[whole] = _new_pool(batch[0].device)
        pool = self._pools[whole]

        def record() -> None:
            self.possible = _is_recordable(steps, batch, whole=whole)
            if self.possible:
                made = RecordedStep(steps, batch, whole=whole, pool=pool)
                self.possible = _agrees(made, steps, batch, whole=whole)
                self._recorded[key] = made

        self._attempt(record)

    def _attempt(self, record: Callable[[], None]) -> None:
        """Record something; if that fails, or is found to be impossible, record no more."""
        try:
            with cuda.ONE_AT_A_TIME:
                record()
        except Exception:
            # No memory, or what cannot be recorded; if it is wrong in itself, it will fail again.
            self.possible = False
        if not self.possible:
            self.forget()


@contextlib.contextmanager
def nothing_recorded() -> Iterator[None]:
    """Take all steps as they are, to compare with."""
    token = _RECORDS.set(False)
    try:
        yield
    finally:
        _RECORDS.reset(token)


def on_gpu(device: torch.device) -> bool:
    """Return whether a device is one that works while others do something else."""
    return device.type == "cuda"


def _new_pool(device: torch.device) -> Any:
    return cuda.new_pool() if on_gpu(device) else cpu.Pool()


def _record(function: Callable[[], _T], pool: Any, device: torch.device) -> tuple[_Recording, _T]:
    """Return the recording of a function, which itself changes nothing, and what it returned."""
    if on_gpu(device):
        return cuda.record(function, pool, device)
    return cpu.record(function, pool)


def _is_recordable(steps: "JointSteps", batch: Batch, *, whole: bool) -> bool:
    """Return whether all code in a step is known, or, on a GPU, waits for nothing.

    That is tried before it is recorded, since a failure is harmless here.
    """
    device = batch[0].device
    if not on_gpu(device):
        return _is_known(steps)
    try:
        with _untouched(steps, device), cuda.no_waiting(device):
            steps.gradient(batch, steps.dual.multipliers.tolist(), whole=whole)
    except Exception:
        # Whatever a prior or a network makes of it.
        return False
    return True


def _is_known(steps: "JointSteps") -> bool:
    """Return whether a step has no code of a user's own in it; the estimator holds the prior."""
    return steps.kernel is ones and is_known(steps.estimator)


def _agrees(made: RecordedStep, steps: "JointSteps", batch: Batch, *, whole: bool) -> bool:
    """Return whether a recording finds for other data what a step finds that is taken as it is.

    On a CPU, where nothing waits, it tells what cannot be done again to the bit, or was done
    outside of torch.
    """
    device = batch[0].device
    if on_gpu(device):
        return True
    first = torch.arange(len(batch[0])) // 2
    # One half of the rows, then the other, each row twice: what depends on all of them, or adds to
    # something of its own, is not the same in both.
    for rows in (first, len(first) - 1 - first):
        theta, x, masks = (t[rows] for t in batch)
        with _untouched(steps, device):
            weights = steps.dual.multipliers.tolist()
            expected, gradients = steps.gradient((theta, x, masks), weights, whole=whole)
        with _untouched(steps, device):
            found = made.gradient(steps, (theta, x, masks))
        pairs = zip((found, *_flat(made.gradients)), (expected, *_flat(gradients)), strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            return False
    return True


def _flat(gradients: "Gradients") -> list[Tensor]:
    return [gradient for each in gradients.of for gradient in each]


@contextlib.contextmanager
def _untouched(steps: "JointSteps", device: torch.device) -> Iterator[None]:
    """Leave random numbers, samples and buffers as they are now, also on Ctrl-C."""
    buffers = list(steps.estimator.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        with _queue_kept(steps), forked(device):
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            # The statistics of a batch normalisation, for one. What stays as it is is not written
            # to: some of it is remembered as unchanged.
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def _queue_kept(steps: "JointSteps") -> Iterator[None]:
    """Put the samples back that are in the queue now."""
    sets = steps.queue.sets.copy()
    try:
        yield
    finally:
        steps.queue.sets = sets
