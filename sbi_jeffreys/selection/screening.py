r"""Which columns of x to look at: not those that say nothing of theta.

Among many columns there are often a few that :math:`\theta` moves, and others that it does not.
Networks that see all of them learn the noise of each. So columns are tested. One is kept

- if its value, its rank, or that of its distance from the median depends on where a parameter or a
  product of two lies, or on how much regressions on the columns kept so far leave of a parameter
  and of its square (much, where the noise is large, as an error bar says);
- or if its product with another column does, as of a column that says what the noise of the other
  was.

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

from ..features.principal import principal_axes
from ..features.regression import MOST_FEATURES, LinearRegression, linear_entropy
from ..features.scales import cut_outliers, finite_sample, shift_and_scale

__all__ = ["Columns", "dependent", "dependent_reading", "informative"]

# So few rows tell nothing: of which columns to leave out, and of one by itself.
_FEWEST_ROWS, _FEWEST_FOR_EACH = 80, 20
# Rows with a mark, and without it, of which a mean is taken.
_FEWEST_MARKED = 10
# Rows for tests of columns, and for those of pairs and of the group: a sample of them, which may be
# ordered by theta.
_ROWS, _SOME_ROWS = 10_000, 1000
# Numbers in these rows at most.
_ENTRIES = 10_000_000
# Parts, of equally many rows, in which a parameter may lie, and parameters up to which products of
# two are asked for, as well as squares.
_PARTS, _MOST_IN_PRODUCTS = 8, 20
# Margin above sqrt(2 log m), about the largest of m standard normals.
_MARGIN = 0.5
# Probability with which a group that says nothing is kept, and nats by which the linear posterior
# must be sharper with it.
_LEVEL, _SHARPER = 3e-3, 0.02


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

    All of them where there are fewer than 80 rows. Of more than 500 columns no products with
    others are tested, and all are kept if more than 500 would be.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c). Rows with NaN or inf do not count.
    """
    every = torch.arange(x.shape[1])
    if len(every) < 2:
        return every
    most = min(_ROWS, max(_FEWEST_ROWS, _ENTRIES // len(every)))
    theta, x = finite_sample(theta, x, most)
    if len(theta) < _FEWEST_ROWS:
        return every
    mean, std = shift_and_scale(x)
    cut = cut_outliers((x - mean) / std)
    # Ranks of x itself: one far row may leave nothing else of what is standardised.
    kept = _kept(theta, torch.cat((_ranks(x), _distances(x)), dim=1), cut)
    if not bool(kept.any()) or bool(kept.all()):
        return every
    if len(every) > MOST_FEATURES:
        # Too many for a regression: what they vary along.
        cut, kept_of = cut @ principal_axes(cut)[1].float(), cut[:, kept]
    else:
        kept_of = cut[:, kept]
    sharper = linear_entropy(theta, kept_of) - linear_entropy(theta, cut)
    return every if sharper > _SHARPER else every[kept]


def dependent(theta: Tensor, columns: Tensor) -> Tensor:
    """Return which columns depend on theta, each by itself, shape (k,); none of a dozen rows.

    Args:
        theta: Parameters, shape (n, d), without NaN or inf.
        columns: Data, shape (n, k), likewise.
    """
    if len(theta) < _FEWEST_FOR_EACH:
        return torch.zeros(columns.shape[1], dtype=torch.bool)
    return _depend(_ranks(columns), torch.cat(_places(theta), dim=1), columns.shape[1])


def dependent_reading(theta: Tensor, columns: Tensor, there: Tensor, marks: Tensor) -> Tensor:
    """Return which marks tell how columns are to be read, shape (k,): where they set a sign, say.

    How a column varies with a parameter, or with its square, is then another in the rows with the
    mark than in the others. Of more than 500 columns or marks nothing is asked.

    Args:
        theta: Parameters, shape (n, d), without NaN or inf.
        columns: Data, shape (n, c), likewise.
        there: Which of them count, shape (n, c).
        marks: Zeros and ones, shape (n, k).
    """
    num = marks.shape[1]
    if len(theta) < _FEWEST_ROWS or max(columns.shape[1], num) > MOST_FEATURES:
        return torch.zeros(num, dtype=torch.bool)
    asked = _places(theta)[0][:, : 2 * theta.shape[1]]
    rows = (_ranks(columns), there.to(asked), marks, asked)
    columns, there, marks, asked = (each[:_SOME_ROWS].double() for each in rows)
    total, marked = there.sum(dim=0), marks.T @ there
    others = total - marked
    statistics = torch.zeros_like(marked)
    for each in asked.T[..., None]:
        products = each * columns * there
        mean, squares = products.sum(dim=0) / total, products.square().sum(dim=0) / total
        # The mean with the mark less that without it, in standard errors if both are one.
        apart = marks.T @ products - marked * mean
        error = ((squares - mean**2) * marked * others / total).sqrt()
        statistics = torch.maximum(statistics, (apart / error).abs().nan_to_num(0.0, 0.0))
    few = torch.minimum(marked, others) < _FEWEST_MARKED
    large = statistics > _threshold(statistics.numel() * asked.shape[1])
    return (large & ~few).any(dim=1)


def _kept(theta: Tensor, columns: Tensor, cut: Tensor) -> Tensor:
    """Return which of c data are kept by the tests, shape (c,).

    Args:
        theta: Parameters, shape (n, d).
        columns: Ranks of values and of distances from the median, shape (n, 2 c).
        cut: Values without outliers, shape (n, c).
    """
    moments, parts = _places(theta)
    first = moments[:, : 2 * theta.shape[1]]
    # Values as they are as well: ranks hide how far away a few rows are.
    scores = torch.cat((columns, _standard(cut)), dim=1)
    num = cut.shape[1]
    kept = _depend(scores, torch.cat((moments, parts), dim=1), num)
    if not bool(kept.any()) or bool(kept.all()) or int(kept.sum()) > MOST_FEATURES:
        return torch.ones_like(kept)
    left = _left(theta, first, columns, cut, kept)
    kept = kept | _depend(scores, left, num)
    if bool(kept.all()):
        return kept
    rows = (columns, moments, parts, first, left)
    columns, moments, parts, first, left = (_standard(each[:_SOME_ROWS]) for each in rows)
    if num <= MOST_FEATURES:
        # There are many pairs, so only parameters and their squares are tested, no products.
        kept = kept | _depend_in_pairs(columns, torch.cat((first, left), dim=1), kept)
    if bool(kept.all()):
        return kept
    asked = torch.cat((moments, parts, left), dim=1)
    return torch.ones_like(kept) if _depends_as_group(columns, asked, kept) else kept


def _left(theta: Tensor, first: Tensor, columns: Tensor, cut: Tensor, kept: Tensor) -> Tensor:
    """Return what the kept data do not explain of parameters (n, d), and its size, (n, 4 d)."""
    left = LinearRegression(theta, cut[:, kept], int(kept.sum()))(cut[:, kept])(theta)
    # Of the squares, too, and by ranks: where the mean of theta given x is flat, only these say how
    # much was explained.
    seen = columns[:, kept.repeat(2)]
    rest = first - LinearRegression(first, seen, seen.shape[1])(seen).shift
    return torch.cat((_ranks(left), _distances(left), _distances(rest)), dim=1)


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


def _threshold(num: int) -> float:
    """Return what the largest of so many standard normals is, and a margin."""
    return math.sqrt(2 * math.log(num)) + _MARGIN


def _depend(scores: Tensor, asked: Tensor, num: int) -> Tensor:
    """Return which data depend on what is asked for, shape (num,).

    Args:
        scores: Several of each, standardised, shape (n, k num).
        asked: Shape (n, p).
        num: Number of data.
    """
    statistics = (scores.T @ asked).abs().amax(dim=1) / math.sqrt(len(asked))
    found = statistics > _threshold(scores.shape[1] * asked.shape[1])
    return found.unflatten(0, (-1, num)).any(dim=0)


def _depend_in_pairs(columns: Tensor, asked: Tensor, kept: Tensor) -> Tensor:
    """Return which of c data, not kept yet, depend in a product with another, shape (c,)."""
    others = columns[:, (~kept).repeat(2)]
    statistics = columns.new_zeros(others.shape[1], columns.shape[1])
    for each in asked.T[..., None]:
        both = each * columns
        both = both - both.mean(dim=0)
        # Of the product itself: a column that depends makes it vary more where it is large.
        variance = others.square().T @ both.square()
        product = (others.T @ both).abs()
        statistics = torch.maximum(statistics, product / variance.clamp_min(1e-6).sqrt())
    large = statistics.amax(dim=1) > _threshold(statistics.numel() * asked.shape[1])
    found = torch.zeros_like(kept)
    found[~kept] = large.unflatten(0, (2, -1)).any(dim=0)
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
