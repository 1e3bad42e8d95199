"""Benchmark tasks with exact reference posteriors.

Every task gives a prior, a simulator, its likelihood, the ten published observations and a sampler
of the exact posterior at any observation; see :class:`Task`.
"""

from .base import NUM_OBSERVATIONS, Task
from .registry import get_task, list_tasks

__all__ = ["NUM_OBSERVATIONS", "Task", "get_task", "list_tasks"]
