r"""A likelihood of counts, bits and categories: each column on its own, given theta.

.. math:: \log \ell(x | \theta) = \sum_j \big[ b_j(x_j) + T_j(x_j) \cdot \eta_j(\theta)
    - A_j(\theta) \big], \qquad
    A_j(\theta) = \log \sum_l e^{b_j(l) + T_j(l) \cdot \eta_j(\theta)}

Gaussians take bits and small counts for what they are not. Where all data come in a few levels,
another form is at hand that is exact for the simulators of textbooks (Bernoulli, binomial, Poisson,
with zeros in excess or without): an exponential family for each column, whose base measure
:math:`b_j` is a table. :math:`T_j` has the level, its square, and whether it is the lowest, an atom
at zero as a rule. Parameters move the natural parameters :math:`\eta` through a network beside a
linear map, as in a generalised linear model.

What depends on both parameters and data is one inner product, so that all pairs of S parameters and
B conditions are one product of matrices.

References:
    | Generalized linear models (Nelder and Wedderburn, 1972), https://doi.org/10.2307/2344614
    | Zero-inflated Poisson regression (Lambert, 1992), https://doi.org/10.2307/1269547
"""

import math

import torch
from torch import Tensor, nn

from ..features.columns import Features
from ..utils.checks import check_counts
from .base import Likelihood
from .levels import NUM_STATISTICS, LevelStatistics, levels_of
from .mixtures import draw_category

__all__ = ["DISCRETE", "DiscreteLikelihood"]

DISCRETE = 4
"""Number of this form; those of Gaussians are 0 to 3."""

# Logarithm of the probability of a level that a column does not have.
_NEVER = -1e4
# Rows that each level is credited with before any is seen.
_PRIOR_ROWS = 0.5
# Units of a column from the lowest to the highest level, at most.
_REACH = 6.0
# Factor on what the network says beside the linear map: what goes beyond a generalised linear model
# is learnt more slowly, or a hundred rows are overfitted.
_SLOW = 0.3
# Normalisers are evaluated for so many levels at once where no gradient is kept.
_AT_ONCE = 2**24


class DiscreteLikelihood(Likelihood):
    r"""Energy network :math:`f_\psi` that is a likelihood of data in levels.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).
        hidden_features: Width of the network of theta; that of the gauge has half of it.
        hidden_layers: Number of hidden layers of the network of theta.
        num_levels: Number of levels, for tables that are to be loaded; by default it and they are
            found in the data.

    Raises:
        ValueError: If a column has more than 40 levels or none, there are no embedded data, c = 0,
            or a number of features, layers or levels will not do.

    Example:
        >>> theta = torch.rand(100, 2)
        >>> network = DiscreteLikelihood(theta, torch.poisson(3 * theta))
        >>> network(torch.rand(16, 1, 2), torch.zeros(5, 2)).shape
        torch.Size([16, 5])
        >>> network.simulate(torch.rand(7, 2)).shape
        torch.Size([7, 2])
    """

    common = DISCRETE
    has_tails = False
    values: Tensor
    middles: Tensor
    log_start: Tensor
    log_width: Tensor
    constant: Tensor

    def __init__(
        self,
        theta: Tensor,
        context: Tensor,
        *,
        hidden_features: int = 128,
        hidden_layers: int = 4,
        num_levels: int | None = None,
    ) -> None:
        super().__init__(
            theta, context, hidden_features=hidden_features, hidden_layers=hidden_layers
        )
        if num_levels is None:
            self._register_tables(*levels_of(context))
        else:
            check_counts(1, num_levels=num_levels)
            blank = context.new_zeros(context.shape[1], num_levels)
            self._register_tables(blank, blank + 1)
        outputs = NUM_STATISTICS * context.shape[1]
        self._build_networks(theta.shape[1], context.shape[1], outputs)
        self.linear = nn.Linear(theta.shape[1], outputs)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            weight = torch.stack((self._first_slope(), *2 * [torch.zeros_like(self.slope)]), dim=1)
            self.linear.weight.copy_(weight.flatten(0, 1))
        # What is learnt of the base measure.
        self.table = nn.Parameter(torch.zeros_like(self.log_start))

    def _register_tables(self, values: Tensor, counts: Tensor) -> None:
        """Register all that is known of levels, of values and numbers of rows, shapes (c, L)."""
        self.register_buffer("values", values)
        # Rare levels may be far out, and their squares must not be huge.
        reach = (values.amax(dim=1) - values.amin(dim=1)) / _REACH
        unit = torch.maximum(self.scale, reach)
        self.statistics = LevelStatistics(values, self.center, unit)
        z, there = self.statistics.levels, counts > 0
        beyond = torch.full_like(z, torch.inf)
        middles = torch.where(there[:, 1:], (z[:, 1:] + z[:, :-1]) / 2, beyond[:, 1:])
        self.register_buffer("middles", middles)
        share = (counts + _PRIOR_ROWS) / (counts + _PRIOR_ROWS * there).sum(dim=1, keepdim=True)
        log_start = share.log().masked_fill(~there, _NEVER)
        self.register_buffer("log_start", log_start)
        self.register_buffer("log_width", self._log_width())
        # Of Gaussians, and of coordinates in which the linear likelihood is standard normal.
        num = len(values)
        constant = 0.5 * num * math.log(2 * math.pi) - self.whitening.diagonal().log().sum()
        self.register_buffer("constant", constant)

    def _first_slope(self) -> Tensor:
        """Return the linear map (c, d) of theta to multiples of the level, in closed form.

        What moves a column's mean by so much, to first order, given the ridge regression of the
        columns on theta and the variance of its residuals.
        """
        L = torch.linalg.inv(self.whitening.double())
        slope = L @ self.slope.double() / L.square().sum(dim=1, keepdim=True)
        return (slope * (self.statistics.unit / self.scale).unsqueeze(1)).to(self.slope)

    def _log_width(self) -> Tensor:
        """Return the logarithms of what is nearest to each level, in units of the scale, (c, L).

        It is the step over which Gaussians spread a level; more where its neighbours are missing.
        """
        values, steps = self.values.T, self.gaps.expand_as(self.values.T)
        lower, upper = self._moved_by(-steps / 2, values), self._moved_by(steps / 2, values)
        middles = (values[1:] + values[:-1]) / 2
        # Columns with fewer levels repeat their highest.
        last = values[1:] == values[:-1]
        lower[1:] = torch.minimum(lower[1:], torch.where(last, lower[1:], middles))
        upper[:-1] = torch.maximum(upper[:-1], torch.where(last, upper[:-1], middles))
        width = ((upper - lower) / self.scale).T
        # What never varies has no step.
        return torch.where(width > 0, width, torch.ones_like(width)).log()

    def follow(self, features: Features, x: Tensor) -> None:
        """Take the steps of data that are bent from the data themselves; see the base class."""
        super().follow(features, x)
        self.log_width.copy_(self._log_width())

    def forget_start(self, theta: Tensor) -> None:
        """Refuse: what is still to be learnt has no levels.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"common={DISCRETE} is for data in levels, and the embedding_net is still to be "
            "trained: leave common out."
        )

    @property
    def spreads_steps(self) -> bool:
        """False: it takes levels as they are, and wants none of them spread."""
        return False

    def dequantize(self, context: Tensor) -> Tensor:
        """Return embedded data as they are."""
        return context

    def log_mixture(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the logarithm of the likelihood, up to a constant; see the base class."""
        natural, statistics = self.natural(theta), self.statistics(context)
        log_norm = self._log_norm(natural.reshape(-1, *natural.shape[-2:]))
        if theta.shape[-2] == 1 and context.shape[-2] != 1:
            inner = natural.flatten(-2).squeeze(-2) @ statistics.flatten(-2).T
        else:
            inner = (natural * statistics).sum(dim=(-2, -1))
        return inner + self._base(context) - log_norm.view(natural.shape[:-2])

    def at_pairs_and_all(
        self, theta: Tensor, shared: Tensor, context: Tensor, rows: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the likelihood at pairs and at all, and the rest; see the base class."""
        natural = self.natural(torch.cat((theta, shared)))
        log_norm = self._log_norm(natural)
        of_pairs, of_shared = natural.flatten(1).split((len(theta), len(shared)))
        norm_of_pairs, norm_of_shared = log_norm.split((len(theta), len(shared)))
        statistics, base = self.statistics(context).flatten(1), self._base(context)
        at_pairs = (of_pairs * statistics[rows]).sum(dim=-1) + base[rows] - norm_of_pairs
        at_all = of_shared @ statistics[:first].T + base[:first] - norm_of_shared.unsqueeze(-1)
        return at_pairs, at_all, self.shift(context)

    @torch.no_grad()
    def simulate(self, theta: Tensor) -> Tensor:
        """Return data in levels; see the base class."""
        level = draw_category(self._logits(self.natural(theta)))
        return self.values.gather(1, level).T

    def natural(self, theta: Tensor) -> Tensor:
        """Return the natural parameters for theta (*, d), shape (*, c, 3)."""
        t = self.standard_theta(theta)
        natural = _SLOW * self.of_theta(t) + self.linear(t)
        return natural.unflatten(-1, (-1, NUM_STATISTICS))

    def _logits(self, natural: Tensor) -> Tensor:
        """Return the unnormalised log probability of each level, (c, B, L), of (B, c, 3)."""
        base = (self.log_start + self.table).unsqueeze(1)
        return torch.baddbmm(base, natural.transpose(0, 1), self.statistics.table.transpose(1, 2))

    def _log_norm(self, natural: Tensor) -> Tensor:
        """Return the log normaliser A, summed over columns, shape (B,), of (B, c, 3)."""
        # Crossed pairs of a pool may be tens of thousands.
        together = torch.is_grad_enabled() or natural.numel() * self.values.shape[1] <= _AT_ONCE
        parts = [natural] if together else natural.split(max(1, _AT_ONCE // self.values.numel()))
        return torch.cat([self._logits(part).logsumexp(dim=-1).sum(dim=0) for part in parts])

    def _base(self, context: Tensor) -> Tensor:
        """Return what the base measure says of data (B, c), shape (B,)."""
        # The nearest level, for data between them or beyond.
        z = self.statistics.in_units(context).T.contiguous()
        level = torch.searchsorted(self.middles, z)
        said = (self.log_start + self.table - self.log_width).gather(1, level)
        return said.sum(dim=0) + self.constant
