"""A prior and a function of its parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ..utils.seeding import seeded

__all__ = ["Simulator", "box", "normal"]


@dataclass(frozen=True)
class Simulator:
    """A prior and a function of parameters.

    Args:
        prior: Prior over theta.
        run: Function of theta (n, d) that returns x (n, c).
    """

    prior: Distribution
    run: Callable[[Tensor], Tensor]

    def simulate(self, num: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return parameters from the prior (num, d) and data (num, c); torch's state stays.

        Args:
            num: Number of simulations.
            generator: Its seed decides.
        """
        with seeded(generator.initial_seed()):
            theta = self.prior.sample(torch.Size((num,)))
            return theta, self.run(theta)


def box(low: list[float], high: list[float]) -> BoxUniform:
    """Return a uniform prior between these bounds."""
    return BoxUniform(torch.tensor(low).float(), torch.tensor(high).float())


def normal(features: int) -> Distribution:
    """Return a standard normal prior of so many parameters."""
    return Independent(Normal(torch.zeros(features), torch.ones(features)), 1)
