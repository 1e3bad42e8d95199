"""The tasks by name. A new task is one file, its data file, and its import and line below."""

from collections.abc import Callable
from difflib import get_close_matches

from .base import Task
from .bernoulli_glm import BernoulliGLM, BernoulliGLMRaw
from .gaussian_linear import GaussianLinear
from .gaussian_linear_uniform import GaussianLinearUniform
from .gaussian_mixture import GaussianMixture
from .lotka_volterra import LotkaVolterra
from .sir import SIR
from .slcp import SLCP
from .slcp_distractors import SLCPDistractors
from .two_moons import TwoMoons

__all__ = ["TASKS", "get_task", "list_tasks"]

TASKS: dict[str, Callable[[], Task]] = {
    "bernoulli_glm": BernoulliGLM,
    "bernoulli_glm_raw": BernoulliGLMRaw,
    "gaussian_linear": GaussianLinear,
    "gaussian_linear_uniform": GaussianLinearUniform,
    "gaussian_mixture": GaussianMixture,
    "lotka_volterra": LotkaVolterra,
    "sir": SIR,
    "slcp": SLCP,
    "slcp_distractors": SLCPDistractors,
    "two_moons": TwoMoons,
}


def list_tasks() -> tuple[str, ...]:
    """The names of all tasks, sorted.

    Returns:
        The names that :func:`get_task` takes.
    """
    return tuple(sorted(TASKS))


def get_task(name: str) -> Task:
    """Builds a task.

    Args:
        name: one of :func:`list_tasks`.

    Returns:
        A new task.

    Raises:
        ValueError: if no task has this name.

    Example:
        >>> task = get_task("two_moons")
        >>> task.dim_theta, task.dim_x
        (2, 2)
        >>> task.observation(1).shape
        torch.Size([1, 2])
    """
    if name in TASKS:
        return TASKS[name]()
    nearest = get_close_matches(str(name), TASKS, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown task {name!r}, known are {', '.join(list_tasks())}{hint}")
