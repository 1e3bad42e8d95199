r"""Which columns of x to look at: not those that say nothing of theta.

Among many columns there are often a few that :math:`\theta` moves, and others that it does not.
Networks that see all of them learn the noise of each. So columns are tested, by ranks. One is kept

- if its value, or its distance from the median, depends on where a parameter or a product of two
  lies, or on what a regression on the columns kept so far leaves of a parameter,
- or if its product with another column does: what says something of the noise of others.

Under independence each statistic is standard normal. Dependence is found where one is above what
the largest of so many is (of m standard normals, :math:`\sqrt{2 \log m}`) and a half.

The others may carry together what none of them carries alone. They are left out only if they are,
as a group, independent of theta (a test by the Hilbert-Schmidt criterion), and if the linear
posterior, in closed form and judged by leave-one-out, is no sharper with them.

References:
    | Sure independence screening for ultrahigh dimensional feature space (Fan and Lv, 2008),
      https://doi.org/10.1111/j.1467-9868.2008.00674.x
    | A kernel statistical test of independence (Gretton et al., 2007), the criterion, and a gamma
      distribution for it under independence
    | Refined approximations to permutation tests for multivariate inference (Kazi-Aoual et al.,
      1995), https://doi.org/10.1016/0167-9473(94)00064-2, its mean and variance
"""

import math

import torch
import torch.nn.functional as F
from scipy.stats import gamma, rankdata
from torch import Tensor, nn

from .linear import MOST_FEATURES, LinearRegression, cut_outliers, linear_entropy
from .scales import shift_and_scale

__all__ = ["Columns", "informative"]

# So few rows tell nothing.
_FEWEST_ROWS = 80
# Rows for tests of columns, and for those of pairs and of the group.
_ROWS, _SOME_ROWS = 10_000, 1000
# Parts, of equally many rows, in which a parameter may lie, and parameters up to which products of
# two are asked for, as well as squares.
_PARTS, _MOST_IN_PRODUCTS = 8, 20
# What a statistic must be above the largest of so many standard normals.
_MARGIN = 0.5
# Probability with which a group that says nothing is kept, and nats by which the linear posterior
# must be sharper with it.
_LEVEL, _SHARPER = 1e-2, 0.02


class Columns(nn.Module):
    """Some columns of x.

    Args:
        kept: Their numbers, shape (k,).

    Example:
        >>> Columns(torch.tensor([0, 2]))(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 3.]])
    """

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return these columns, shape (*, k), of data (*, c)."""
        return x.index_select(-1, self.kept)


def informative(theta: Tensor, x: Tensor) -> Tensor:
    """Return the numbers of the columns of x to look at, shape (k,), in ascending order.

    All of them where there are more than 500, or fewer than 80 rows.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c). Rows with NaN or inf do not count.
    """
    every = torch.arange(x.shape[1])
    finite = x.isfinite().all(dim=1)
    theta, x = theta[finite][:_ROWS].cpu(), x[finite][:_ROWS].cpu()
    if not 1 < len(every) <= MOST_FEATURES or len(x) < _FEWEST_ROWS:
        return every
    mean, std = shift_and_scale(x)
    x = cut_outliers((x - mean) / std)
    kept = _kept(theta, x)
    if not bool(kept.any()) or bool(kept.all()):
        return every
    sharper = linear_entropy(theta, x[:, kept]) - linear_entropy(theta, x)
    return every if sharper > _SHARPER else every[kept]


def _kept(theta: Tensor, x: Tensor) -> Tensor:
    """Return which standardised columns (n, c) are kept by the tests, shape (c,)."""
    moments, parts = _places(theta)
    columns = torch.cat((_ranks(x), _distances(x)), dim=1)
    kept = _depend(columns, torch.cat((moments, parts), dim=1))
    if not bool(kept.any()) or bool(kept.all()):
        return kept
    # What the kept columns explain is taken out: others may say what is wrong with these.
    left = LinearRegression(theta, x[:, kept], int(kept.sum()))(x[:, kept])(theta)
    left = torch.cat((_ranks(left), _distances(left)), dim=1)
    kept = kept | _depend(columns, left)
    if bool(kept.all()):
        return kept
    columns, moments, parts, left = (each[:_SOME_ROWS] for each in (columns, moments, parts, left))
    # Pairs are many: of the moments, parameters and their squares must do.
    first = torch.cat((moments[:, : 2 * theta.shape[1]], left), dim=1)
    kept = kept | _depend_in_pairs(columns, first, kept)
    if bool(kept.all()):
        return kept
    asked = torch.cat((moments, parts, left), dim=1)
    return torch.ones_like(kept) if _depends_as_group(columns, asked, kept) else kept


def _places(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return by rank parameters (n, d) with squares and products, and in which part each lies."""
    t = _ranks(theta)
    i, j = torch.triu_indices(theta.shape[1], theta.shape[1], 1)
    products = t[:, i] * t[:, j] if theta.shape[1] <= _MOST_IN_PRODUCTS else t[:, :0]
    below = torch.from_numpy(rankdata(theta.numpy(), method="min", axis=0) - 1)
    parts = F.one_hot((below * _PARTS / len(t)).long(), _PARTS).flatten(1).to(t)
    return torch.cat((t, _standard(torch.cat((t * t, products), dim=1))), dim=1), _standard(parts)


def _ranks(columns: Tensor) -> Tensor:
    """Return the ranks of columns (n, c), standardised; ties share one."""
    return _standard(torch.from_numpy(rankdata(columns.numpy(), axis=0)).float())


def _distances(columns: Tensor) -> Tensor:
    """Return the ranks of the distances of columns (n, c) from their medians."""
    return _ranks((columns - columns.median(dim=0).values).abs())


def _standard(columns: Tensor) -> Tensor:
    """Return columns (n, c) with mean zero and mean square one; zero where they never vary."""
    centred = columns - columns.mean(dim=0)
    return centred / centred.square().mean(dim=0).sqrt().clamp_min(1e-6)


def _exceed(statistics: Tensor, num: int) -> Tensor:
    """Return which of c data have a statistic, (2 c,), beyond the largest of so many normals."""
    found = statistics > math.sqrt(2 * math.log(num)) + _MARGIN
    return found.unflatten(0, (2, -1)).any(dim=0)


def _depend(columns: Tensor, asked: Tensor) -> Tensor:
    """Return which of c data depend on what is asked for, shape (c,).

    Args:
        columns: Values and distances from the median, shape (n, 2 c).
        asked: Shape (n, p).
    """
    statistics = (columns.T @ asked).abs().amax(dim=1) / math.sqrt(len(asked))
    return _exceed(statistics, columns.shape[1] * asked.shape[1])


def _depend_in_pairs(columns: Tensor, asked: Tensor, kept: Tensor) -> Tensor:
    """Return which of c data, not kept yet, depend in a product with another, shape (c,)."""
    others = columns[:, (~kept).repeat(2)]
    statistics = columns.new_zeros(others.shape[1], columns.shape[1])
    for each in asked.T[..., None]:
        product = others.T @ (each * columns)
        # Of the product itself: a column that depends makes it vary more where it is large.
        variance = others.square().T @ (each * columns).square()
        statistics = torch.maximum(statistics, product.abs() / variance.clamp_min(1e-6).sqrt())
    found = torch.zeros_like(kept)
    found[~kept] = _exceed(statistics.amax(dim=1), statistics.numel() * asked.shape[1])
    return found


def _depends_as_group(columns: Tensor, asked: Tensor, kept: Tensor) -> bool:
    """Whether the data that are not kept depend, together, on what is asked for."""
    values, distances = columns.chunk(2, dim=1)
    others = values[:, ~kept]
    of_others = others @ others.T
    # All products of one of them with any.
    products = of_others * (values @ values.T)
    mean = products.mean(dim=0)
    products = products - mean - mean.unsqueeze(-1) + mean.mean()
    distant = distances[:, ~kept]
    similar = asked @ asked.T
    grams = (of_others, distant @ distant.T, products)
    return any(_chance(gram, similar) < _LEVEL for gram in grams)


def _chance(one: Tensor, other: Tensor) -> float:
    r"""Return the probability that independent data have so large a Hilbert-Schmidt criterion.

    That is :math:`\mathrm{tr}(K L)` of their Gram matrices. Its mean and variance are those under
    permutations of the rows of one.

    Args:
        one: Gram matrix of centred data, shape (n, n).
        other: Of others.
    """
    n, K, L = len(one), one.double(), other.double()
    (t, t2, t3), (s, s2, s3) = _moments(K), _moments(L)
    mean = t * s / (n - 1)
    variance = 2 * ((n - 1) * t2 - t * t) * ((n - 1) * s2 - s * s)
    variance /= (n - 1) ** 2 * (n + 1) * (n - 2)
    single = (n * (n + 1) * t3 - (n - 1) * (t * t + 2 * t2)) * (
        n * (n + 1) * s3 - (n - 1) * (s * s + 2 * s2)
    )
    variance += single / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    if not variance > 0:
        # One of the two never varies.
        return 1.0
    found = (K * L).sum().item()
    return float(gamma.sf(found, mean**2 / variance, scale=variance / mean))


def _moments(gram: Tensor) -> tuple[float, float, float]:
    """Return the trace, the sum of squares and that of the squares of the diagonal."""
    diagonal = gram.diagonal()
    return diagonal.sum().item(), gram.square().sum().item(), diagonal.square().sum().item()
