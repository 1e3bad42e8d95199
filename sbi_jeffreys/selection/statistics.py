r"""What the flow sees of many columns in levels: statistics of a likelihood, learnt from it.

Where x has dozens of bits or counts, a likelihood of levels
(:mod:`sbi_jeffreys.likelihood.discrete`) may tell much more of :math:`\theta` than Gaussians do, of
the columns or of their components. It then is the proxy, of the columns. What it has of x beside
:math:`\theta` is :math:`\sum_j z_j \eta_j(\theta)`, and :math:`\eta(\theta)` moves along a few
directions, as many as there are parameters in a generalised linear model. So the flow, which would
learn the noise of all columns, sees their sums along these directions: sufficient statistics, as
far as the likelihood is right.

References:
    Likelihood-free inference via learnt sufficient statistics is old: Constructing summary
    statistics for approximate Bayesian computation (Fearnhead and Prangle, 2012),
    https://doi.org/10.1111/j.1467-9868.2011.01010.x
"""

import torch
from torch import Tensor, nn

from ..features.regression import MOST_FEATURES
from ..features.scales import finite_sample
from ..likelihood.discrete import DiscreteLikelihood, has_few_levels
from ..likelihood.information import fitted, information, information_of, is_level
from ..likelihood.start import steps_of
from .components import ROWS, Components, judges_of

__all__ = ["Statistics", "num_statistics", "statistics_of"]

# Columns for which it is worth it, at least; of fewer the flow can see each.
_FEWEST_COLUMNS = 20
_FEWEST_ROWS = 50
# Singular values, relative to the largest, from which on a direction is noise. It matters little:
# sums have the ratios of these, so that those of noise are small.
_NOISE = 0.01


class Statistics(Components):
    """Sums that the flow sees of columns, arguments and values as those of components."""

    @classmethod
    def blank(cls, x: Tensor, num: int) -> "Statistics":
        """Return so many statistics of data (n, c), to be loaded."""
        return cls(x.new_zeros(x.shape[1], num), x.new_zeros(num))


def num_statistics(module: nn.Module) -> int:
    """Return the number of statistics that a flow sees in place of columns, 0 if there are none."""
    numbers = (len(each.offset) for each in module.modules() if isinstance(each, Statistics))
    return next(numbers, 0)


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
    with torch.enable_grad():
        network = DiscreteLikelihood(*rows)
    fitted(network, rows, held_out)
    others = [(t, c if components is None else components(c)) for t, c in (rows, held_out)]
    # Where columns share noise it knows less, by nats.
    as_much = is_level(information_of(network, rows, held_out), information(*others))
    return _sums(network, *rows).to(x) if as_much else None


@torch.no_grad()
def _sums(network: DiscreteLikelihood, theta: Tensor, x: Tensor) -> Statistics:
    """Return sums of columns along the directions in which natural parameters move."""
    natural = network.of_level(theta).double()
    _, values, directions = torch.linalg.svd(natural - natural.mean(dim=0), full_matrices=False)
    directions = (values / values[0] * directions.T)[:, values > _NOISE * values[0]]
    sums = x.double() @ directions
    scale = sums.std(dim=0).max()
    return Statistics((directions / scale).float(), (sums.mean(dim=0) / scale).float())
