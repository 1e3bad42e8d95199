"""Observations and reference samples of a job, shared by all methods.

Reference samples depend on task and observation alone (for new observations also on the seed that
made them), so they are drawn once and kept in a folder. Without the folder they are drawn again:
same samples, more time. They are kept for these data and this code of the task: where either has
changed since, they are drawn anew.
"""

import contextlib
import hashlib
import inspect
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..tasks import Task
from ..utils.files import atomic_write
from ..utils.seeding import derive_seed
from .jobs import Evaluation, Job
from .published import published_reference_posterior

__all__ = ["Observation", "generator", "observations", "reference_samples"]


class Observation(NamedTuple):
    """An observation.

    Attributes:
        number: From 1.
        x: Data, shape (1, *).
        key: What its reference samples are the same for.
    """

    number: int
    x: Tensor
    key: tuple[str | int, ...]


def generator(*parts: str | int) -> torch.Generator:
    """Return a generator seeded by what it is for."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def observations(task: Task, job: Job, evaluation: Evaluation) -> list[Observation]:
    """Return the observations of a job: the published ones, or new ones by its seed."""
    if not evaluation.fresh:
        return [
            Observation(i, task.observation(i), (job.task, "observation", i))
            for i in evaluation.numbers
        ]
    count = len(evaluation.numbers)
    _, x = task.simulate(count, generator=generator("observations", job.task, job.seed))
    return [
        Observation(i, x[i - 1 : i], (job.task, f"seed{job.seed}", "fresh", i))
        for i in evaluation.numbers
    ]


def reference_samples(
    task: Task, observation: Observation, evaluation: Evaluation, folder: Path | None
) -> Tensor:
    """Return samples of the reference posterior.

    Args:
        task: Task.
        observation: Observation of it.
        evaluation: Says how many, and whose.
        folder: Folder of those that were drawn before; ``None`` to draw them again.

    Returns:
        Samples, shape (n, d).
    """
    n = evaluation.num_samples
    if evaluation.reference == "published":
        return published_reference_posterior(task.name, observation.number)[:n]
    key = "--".join(map(str, observation.key))
    path = folder / f"{key}--n{n}--{_origin(task, observation.x)}.npy" if folder else None
    if path is not None:
        # What cannot be read, or was cut off by a full disk, is drawn again.
        with contextlib.suppress(OSError, ValueError, EOFError):
            samples = torch.from_numpy(np.load(path))
            if samples.shape == (n, task.dim_theta):
                return samples
    seed = generator("reference", *observation.key)
    samples = task.reference_posterior(observation.x, n, generator=seed)
    if path is not None:
        # A worker on another machine need not have the folder; the samples are the same.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                np.save(temporary, samples.numpy())
    return samples


def _origin(task: Task, x: Tensor) -> str:
    """Return a digest of what samples come from: data, the version, and the code of the task."""
    digest = hashlib.sha256(__version__.encode())
    digest.update(x.numpy().tobytes())
    for kind in type(task).__mro__[:-1]:
        # Code that was typed in, or came to this worker as text, has no file to look at.
        with contextlib.suppress(OSError, TypeError):
            digest.update(inspect.getsource(kind).encode())
    return digest.hexdigest()[:12]
