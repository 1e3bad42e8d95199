r"""What the flow sees of many columns in levels: statistics of a likelihood, learnt from it.

Where x has dozens of bits or counts, a likelihood of levels
(:mod:`sbi_jeffreys.likelihood.discrete`) may tell much more of :math:`\theta` than Gaussians do, of
the columns or of their components. It then is the proxy, of the columns. What it has of x beside
:math:`\theta` is :math:`\sum_j T_j(x_j) \cdot \eta_j(\theta)`, where :math:`\eta(\theta)` moves
along few directions, as many as there are parameters in a generalised linear model. So the flow,
which would learn the noise of all columns, sees sums of T along these: sufficient statistics, as
far as the likelihood is right.

References:
    Likelihood-free inference via learnt sufficient statistics is old: Constructing summary
    statistics for approximate Bayesian computation (Fearnhead and Prangle, 2012),
    https://doi.org/10.1111/j.1467-9868.2011.01010.x
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.regression import MOST_FEATURES
from ..features.scales import finite_sample
from ..likelihood.discrete import DiscreteLikelihood
from ..likelihood.information import fitted, information, information_of, is_level
from ..likelihood.levels import LevelStatistics, has_few_levels
from ..likelihood.start import steps_of
from .components import ROWS, Components, judges_of

__all__ = ["NO_STATISTICS", "Statistics", "StatisticsSizes", "statistics_of"]

# Columns for which it is worth it, at least; of fewer the flow can see each.
_FEWEST_COLUMNS = 20
_FEWEST_ROWS = 50
# Singular values, relative to the largest, from which on a direction is noise. It matters little:
# sums have the ratios of these, so that those of noise are small.
_NOISE, _ROUNDING = 0.01, 1e-9


class StatisticsSizes(NamedTuple):
    """Number of statistics, and of levels; zeros for none."""

    number: int
    levels: int


NO_STATISTICS = StatisticsSizes(0, 0)


class Statistics(nn.Module):
    """Sums of what an exponential family takes of columns in levels.

    Args:
        of_levels: What that is.
        directions: Coefficients of the sums, shape (3 c, k).
        offset: What is subtracted, shape (k,).
    """

    directions: Tensor
    offset: Tensor

    def __init__(self, of_levels: LevelStatistics, directions: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.of_levels = of_levels
        # As it is loaded, or products would be rounded otherwise.
        self.register_buffer("directions", directions.contiguous())
        self.register_buffer("offset", offset)

    @classmethod
    def blank(cls, columns: int, sizes: StatisticsSizes) -> "Statistics":
        """Return statistics of these sizes, of so many columns, to be loaded."""
        zeros = torch.zeros(columns, sizes.levels)
        of_levels = LevelStatistics(zeros, torch.zeros(columns), torch.ones(columns))
        rows = of_levels.table[:, 0].numel()
        return cls(of_levels, torch.zeros(rows, sizes.number), torch.zeros(sizes.number))

    @property
    def sizes(self) -> StatisticsSizes:
        """How many there are, of how many levels."""
        return StatisticsSizes(len(self.offset), self.of_levels.levels.shape[1])

    def forward(self, context: Tensor) -> Tensor:
        """Return the sums (*, k) of columns (*, c)."""
        return self.of_levels(context).flatten(-2) @ self.directions - self.offset


def statistics_of(theta: Tensor, x: Tensor, components: Components | None) -> Statistics | None:
    """Return sums of columns that a likelihood of levels has learnt, if it tells as much of theta.

    Args:
        theta: Parameters, shape (n, d).
        x: Data in standard deviations, shape (n, c). Rows with NaN or inf do not count.
        components: What would be looked at otherwise, in place of the columns.
    """
    if not _FEWEST_COLUMNS <= x.shape[1] <= MOST_FEATURES:
        return None
    few_theta, few_x = finite_sample(theta, x, ROWS)
    if len(few_x) < _FEWEST_ROWS or not has_few_levels(few_x, steps_of(few_x)):
        return None
    judges = judges_of(few_theta)
    rows, held_out = ((few_theta[which], few_x[which]) for which in (~judges, judges))
    network = DiscreteLikelihood(*rows)
    own = information_of(fitted(network, rows, held_out), rows, held_out)
    others = [(t, c if components is None else components(c)) for t, c in (rows, held_out)]
    # Where columns share noise it knows less, by nats; what it knows nothing of has no statistics.
    if not (own.mean() > 0 and is_level(own, information(*others))):
        return None
    return _sums(network, *rows).to(x)


@torch.no_grad()
def _sums(network: DiscreteLikelihood, theta: Tensor, x: Tensor) -> Statistics:
    """Return sums along the directions in which natural parameters move."""
    natural, of_levels = (
        network.natural(theta).flatten(1).double(),
        copy.deepcopy(network.statistics),
    )
    # Of two statistics with one direction, the one that varies more is worth more.
    taken = of_levels(x).flatten(1).double()
    spread = taken.std(dim=0)
    moves = (natural - natural.mean(dim=0)) * spread
    _, values, directions = torch.linalg.svd(moves, full_matrices=False)
    some = values > max(_NOISE * values[0].item(), _ROUNDING)
    per_spread = torch.where(spread > 0, 1 / spread, torch.zeros_like(spread))
    directions = (values[some] * directions[some].T) * per_spread.unsqueeze(1)
    sums = taken @ directions
    scale = sums.std(dim=0).max()
    return Statistics(of_levels, (directions / scale).float(), (sums.mean(dim=0) / scale).float())
