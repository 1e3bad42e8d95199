"""One cell of the grid, how it is judged, and the seeds of everything.

A job is (task, method, number of simulations, seed). Every random number comes from a seed that is
a hash of what it is for. Simulations depend on task, budget and seed alone, so that all methods see
the same; test simulations and new observations on task and seed; reference samples on task and
observation. Everything else depends on the whole job.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from ..tasks import NUM_OBSERVATIONS
from .published import NUM_PUBLISHED, has_published_reference

__all__ = ["DEFAULT_METRICS", "METRICS", "Evaluation", "Job", "check_name", "grid"]

METRICS = (
    "nll",
    "c2st",
    "c2st_rf",
    "mmd",
    "sliced_wasserstein",
    "leakage",
    "mode_mass",
    "divergences",
    "coverage",
)
"""All metrics by name; ``docs/benchmark.md`` says what each writes into a record."""

DEFAULT_METRICS = ("nll", "c2st", "leakage", "mode_mass")

# Of tasks and methods: parts of the names of files.
NAME = re.compile(r"[A-Za-z0-9_.+]+(-[A-Za-z0-9_.+]+)*")
# What tables can hold.
LARGEST = 2**63 - 1
FRESH = re.compile(r"fresh:([1-9]\d*)")


def check_name(kind: str, name: str) -> None:
    """Raise ``ValueError`` for a name that could not be part of a record's file name."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{kind} name {name!r} must consist of letters, digits, _, ., + and single hyphens "
            "between them."
        )


@dataclass(frozen=True)
class Job:
    """A method, trained once."""

    task: str
    method: str
    num_simulations: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("num_simulations", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
            if value > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST}, got {value}.")

    @property
    def id(self) -> str:
        """Name of the job and of its record.

        >>> Job("two_moons", "npe", 1000, 0).id
        'two_moons--npe--n1000--seed0'
        """
        return f"{self.task}--{self.method}--n{self.num_simulations}--seed{self.seed}"


@dataclass(frozen=True)
class Evaluation:
    """How all jobs of a run are judged.

    Attributes:
        observations: Numbers of published observations, or "fresh:N" for N new ones from the prior
            predictive distribution.
        num_samples: Posterior samples at each observation, and as many reference samples.
        num_test: Fresh simulations for the held-out NLL.
        num_coverage: Fresh simulations for the coverage.
        metrics: Some of :data:`METRICS`.
        reference: "own" for the task's exact sampler, "published" for sbibm's samples.
        quick: Whether methods train for a moment only: a smoke test.
    """

    observations: tuple[int, ...] | str = tuple(range(1, NUM_OBSERVATIONS + 1))
    num_samples: int = 10_000
    num_test: int = 2000
    num_coverage: int = 200
    metrics: tuple[str, ...] = DEFAULT_METRICS
    reference: str = "own"
    quick: bool = False

    def __post_init__(self) -> None:
        given, known = self.observations, range(1, NUM_OBSERVATIONS + 1)
        if isinstance(given, str):
            fine = FRESH.fullmatch(given) is not None
        else:
            fine = len(given) > 0 and all(i in known for i in given)
        if not fine:
            raise ValueError(
                f"observations must be numbers from 1 to {NUM_OBSERVATIONS}, or fresh:N with N at "
                f"least 1, got {given!r}."
            )
        least = {"num_samples": 10, "num_test": 2}
        if "coverage" in self.metrics:
            least["num_coverage"] = 100
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            alone = " 'all' stands alone." if "all" in unknown else ""
            raise ValueError(f"unknown metrics {unknown}, known are {', '.join(METRICS)}.{alone}")
        self._check_reference()
        # In one order: evaluations that ask for the same are equal.
        object.__setattr__(self, "metrics", tuple(n for n in METRICS if n in self.metrics))
        if not isinstance(self.observations, str):
            object.__setattr__(self, "observations", tuple(sorted(set(self.observations))))

    def _check_reference(self) -> None:
        if self.reference not in ("own", "published"):
            raise ValueError(f"reference must be own or published, got {self.reference!r}.")
        if self.reference == "published":
            if isinstance(self.observations, str):
                raise ValueError(
                    f"there are no published reference samples at {self.observations} "
                    "observations; choose numbers, or reference own."
                )
            if self.num_samples > NUM_PUBLISHED:
                raise ValueError(
                    f"num_samples is {self.num_samples}, but {NUM_PUBLISHED} reference samples are "
                    "published; take fewer, or reference own."
                )

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the observations, from 1."""
        if isinstance(self.observations, str):
            return tuple(range(1, int(self.observations.removeprefix("fresh:")) + 1))
        return self.observations

    @property
    def fresh(self) -> bool:
        """Whether observations are new ones instead of the published ones."""
        return isinstance(self.observations, str)

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Raise ValueError if a task has no reference samples of the kind that is asked for."""
        if self.reference == "published":
            lacking = [task for task in tasks if not has_published_reference(task)]
            if lacking:
                raise ValueError(
                    f"there are no published reference samples of {', '.join(lacking)}; choose "
                    "reference own."
                )

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON has it: lists for tuples."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Evaluation":
        """Return the evaluation that :meth:`to_json` wrote.

        Raises:
            ValueError: If names are missing or unknown, or a value is wrong.
        """
        names = [f.name for f in fields(cls)]
        if sorted(values) != sorted(names):
            raise ValueError(f"an evaluation has {sorted(names)}, got {sorted(values)}.")
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**tuples)


def grid(
    tasks: Iterable[str], methods: Iterable[str], budgets: Iterable[int], seeds: Iterable[int]
) -> list[Job]:
    """Return all jobs, each once, seed by seed: a run that is cut off then has whole seeds."""
    combinations = product(seeds, budgets, tasks, methods)
    return list(dict.fromkeys(Job(task, method, n, seed) for seed, n, task, method in combinations))
