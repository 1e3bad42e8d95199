r"""The interface of a benchmark task.

A task is a prior :math:`p(\theta)` and a simulator :math:`x \sim p(x \mid \theta)` whose likelihood
is known well enough that independent draws from the posterior

.. math:: p(\theta \mid x) \propto p(\theta)\, p(x \mid \theta)

can be made for *any* :math:`x`, so that an estimate of the posterior can be judged on new data as
well as on the ten published observations.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021),
    https://arxiv.org/abs/2101.04653
"""

import json
import operator
from abc import ABC, abstractmethod
from functools import cached_property
from importlib import resources
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

__all__ = ["NUM_OBSERVATIONS", "Task"]

NUM_OBSERVATIONS = 10


class Task(ABC):
    r"""A prior, a simulator, its likelihood and a sampler of the exact posterior.

    A task states its ``name``, ``dim_theta`` and ``dim_x`` as class attributes, sets ``prior`` when
    it is built, and defines the methods with a leading underscore. Shapes are checked here.

    Attributes:
        name: the name under which the registry and the data file know the task.
        dim_theta: the number :math:`d` of parameters.
        dim_x: the number of components of a data set.
        prior: :math:`p(\theta)`, with event shape ``(d,)``, on the CPU.
    """

    name: ClassVar[str]
    dim_theta: ClassVar[int]
    dim_x: ClassVar[int]
    prior: Distribution

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim_theta={self.dim_theta}, dim_x={self.dim_x})"

    # What a task defines

    @abstractmethod
    def _simulate(self, theta: Tensor, generator: Generator | None) -> Tensor:
        """Draws one data set ``(n, dim_x)`` for each row of theta, on theta's device."""

    @abstractmethod
    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood ``(n,)`` of theta ``(n, d)`` at x ``(1, dim_x)`` or ``(n, dim_x)``."""

    @abstractmethod
    def _sample_reference(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws ``(n, d)`` from the posterior at x ``(dim_x,)``, in float64 on the CPU."""

    def modes(self, theta: Tensor) -> Tensor:
        r"""The label of the posterior's mode to which each parameter belongs.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, d)``.

        Returns:
            Labels counted from zero, of type int64 and shape ``(n,)``.

        Raises:
            NotImplementedError: if the task has no natural modes.
        """
        raise NotImplementedError(f"task {self.name!r} does not label modes")

    # What every task has

    def simulator(self, theta: Tensor, *, generator: Generator | None = None) -> Tensor:
        r"""Simulates one data set :math:`x \sim p(x \mid \theta)` for each parameter.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, d)``, in the prior's support.
            generator: source of randomness on theta's device; PyTorch's global one if None.

        Returns:
            Data :math:`x`, of shape ``(n, dim_x)`` and type float32, on theta's device.

        Raises:
            ValueError: if theta does not have shape ``(n, d)``, or a task that solves equations is
                given parameters that are not finite.
            RuntimeError: if an equation cannot be solved with these parameters.
        """
        return self._simulate(self._check_theta(theta), generator).float()

    def simulate(self, n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        r"""Draws :math:`(\theta, x) \sim p(\theta)\, p(x \mid \theta)`.

        Args:
            n: the number of pairs, positive.
            generator: source of all randomness, on the CPU; PyTorch's global one if None.

        Returns:
            Parameters :math:`\theta`, of shape ``(n, d)``, and data :math:`x`, of shape
            ``(n, dim_x)``, both float32.

        Raises:
            ValueError: if n is not a positive integer.
        """
        n = _check_count(n)
        # Distributions take no generator; a seed drawn from ours decides their draw instead.
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the generators of GPUs too.
            torch.default_generator.manual_seed(_draw_seed(generator))
            theta = self.prior.sample(torch.Size([n]))
        return theta, self.simulator(theta, generator=generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        r"""The log-likelihood :math:`\log p(x \mid \theta)`, differentiable in theta.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, d)``, in the prior's support.
            x: one data set for all parameters, of shape ``(dim_x,)`` or ``(1, dim_x)``, or one for
                each, of shape ``(n, dim_x)``.

        Returns:
            Log-likelihoods, of shape ``(n,)``, in the type of theta.

        Raises:
            ValueError: if theta or x has another shape.
        """
        theta = self._check_theta(theta)
        rows = x[None] if x.ndim == 1 else x
        if rows.ndim != 2 or rows.shape[1] != self.dim_x or len(rows) not in (1, len(theta)):
            raise ValueError(
                f"task {self.name!r} expects x of shape ({self.dim_x},), (1, {self.dim_x}) or "
                f"({len(theta)}, {self.dim_x}), got {tuple(x.shape)}"
            )
        return self._log_likelihood(theta, rows.to(theta))

    def log_posterior_unnormalized(self, theta: Tensor, x: Tensor) -> Tensor:
        r"""The log-posterior up to a constant, :math:`\log p(\theta) + \log p(x \mid \theta)`.

        Args:
            theta: parameters :math:`\theta`, of shape ``(n, d)``; the value outside the prior's
                support is minus infinity.
            x: data, of a shape that :meth:`log_likelihood` takes.

        Returns:
            Unnormalised log-densities, of shape ``(n,)``.

        Raises:
            ValueError: if theta or x has another shape.
        """
        theta = self._check_theta(theta)
        support = self.prior.support
        assert support is not None, "every prior of a task states its support"
        if len(theta) == 0:
            # Constraints of several dimensions cannot check none.
            return self.log_likelihood(theta, x)
        inside = support.check(theta)
        if not bool(inside.any()):
            return theta.new_full((len(theta),), -torch.inf)
        # A point of the support stands in outside it: neither term need be defined there.
        inner = torch.where(inside[:, None], theta, theta[inside][:1].detach())
        value = self.prior.log_prob(inner) + self.log_likelihood(inner, x)
        return torch.where(inside, value, -torch.inf)

    def observation(self, i: int) -> Tensor:
        """The published observation number i.

        Args:
            i: an integer from 1 to 10.

        Returns:
            The data set, of shape ``(1, dim_x)``.

        Raises:
            ValueError: if i is anything else.
        """
        return self._published["observations"][_check_number(i) - 1][None].clone()

    def true_parameters(self, i: int) -> Tensor:
        """The parameters from which the published observation number i was simulated.

        Args:
            i: an integer from 1 to 10.

        Returns:
            The parameters, of shape ``(1, d)``.

        Raises:
            ValueError: if i is anything else.
        """
        return self._published["true_parameters"][_check_number(i) - 1][None].clone()

    def reference_posterior(
        self,
        observation: int | Tensor | np.ndarray,
        n: int = 10_000,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Draws independent samples from the exact posterior.

        Args:
            observation: the number of a published observation, from 1 to 10, or a data set
                :math:`x`, a tensor or array of shape ``(dim_x,)`` or ``(1, dim_x)``.
            n: the number of samples, positive.
            generator: source of randomness; PyTorch's global one if None.

        Returns:
            Samples :math:`\theta \sim p(\theta \mid x)`, of shape ``(n, d)`` and type float32, on
            the CPU.

        Raises:
            ValueError: if the observation or n is anything else.
            RuntimeError: if the sampler cannot reach its accuracy at this x.
        """
        n = _check_count(n)
        if isinstance(observation, np.ndarray):
            observation = torch.from_numpy(observation)
        x = observation if isinstance(observation, Tensor) else self.observation(observation)
        if x.shape not in ((self.dim_x,), (1, self.dim_x)) or not torch.isfinite(x).all():
            raise ValueError(
                f"task {self.name!r} expects one finite observation of shape ({self.dim_x},) or "
                f"(1, {self.dim_x}), got shape {tuple(x.shape)}"
            )
        rng = np.random.default_rng(_draw_seed(generator))
        x64 = x.detach().reshape(-1).double().cpu().numpy()
        return torch.from_numpy(self._sample_reference(x64, n, rng)).float()

    # Checks and data

    @cached_property
    def _published(self) -> dict[str, Tensor]:
        text = resources.files(__package__).joinpath(f"data/{self.name}.json").read_text("utf-8")
        return {
            key: torch.tensor(rows, dtype=torch.float32) for key, rows in json.loads(text).items()
        }

    def _check_theta(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[1] != self.dim_theta:
            raise ValueError(
                f"task {self.name!r} expects theta of shape (n, {self.dim_theta}), "
                f"got {tuple(theta.shape)}"
            )
        return theta


def _draw_seed(generator: Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _check_number(i: SupportsIndex) -> int:
    number = _as_int(i)
    if number is None or not 1 <= number <= NUM_OBSERVATIONS:
        raise ValueError(f"observations are numbered 1 to {NUM_OBSERVATIONS}, got {i!r}")
    return number


def _check_count(n: SupportsIndex) -> int:
    count = _as_int(n)
    if count is None or count < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}")
    return count


def _as_int(i: Any) -> int | None:
    """The integer of any type that this is, None if it is none."""
    try:
        return None if isinstance(i, bool) else operator.index(i)
    except TypeError:
        return None
