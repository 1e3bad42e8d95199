r"""Values that are missing from x and marked by a code, like -999, filled in.

In standard deviations such a code leaves all values that are there one and the same number. Bent or
cut off as an outlier it still lies beyond everything that a value can be, and where each column
misses some, most rows have one. So a code (:mod:`sbi_jeffreys.selection.codes`) is taken for what
it says, which is nothing: a missing value is replaced by its mean given the row's others, under a
Gaussian whose columns vary together along a few directions (probabilistic PCA):
:math:`z = W t + m + \sigma \epsilon`, with columns z in standard deviations and t standard normal.
From what a row has, O, follow the mean of t and that of the rest,

.. math:: \bar t = (W_O^\top W_O + \sigma^2)^{-1} W_O^\top (z_O - m_O), \qquad
    \bar z = W \bar t + m.

W, m and :math:`\sigma` are found by expectation maximisation, over the values that are there.

That a value is missing may itself say something of :math:`\theta` (nothing was seen, because it was
faint). Where a test finds that, a column of zeros and ones says so, one for each code. One more has
the number of missing values, which may tell where no single one does.

References:
    | Probabilistic principal component analysis (Tipping and Bishop, 1999), section 3 and appendix
      B, https://doi.org/10.1111/1467-9868.00196
    | Practical approaches to principal component analysis in the presence of missing values (Ilin
      and Raiko, 2010), section 3.2, https://jmlr.org/papers/v11/ilin10a.html
    | Missing data in amortized simulation-based neural posterior estimation (Wang et al., 2024),
      https://doi.org/10.1371/journal.pcbi.1012184: what stands for missing values, and indicators
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.principal import bounded_columns
from ..features.scales import finite_sample, spread
from ..likelihood.start import steps_of
from ..utils.devices import widest
from .codes import codes_of
from .screening import dependent

__all__ = ["Filled", "FillingSizes", "filling_of", "has_codes"]

# Rows that tell codes and directions.
_ROWS = 2000
# Directions at most, rows and columns for each of them at least.
_DIRECTIONS, _ROWS_EACH, _COLUMNS_EACH = 10, 10, 2
# Steps of expectation maximisation, and the least variance of the noise.
_STEPS, _QUIETEST = 100, 1e-8

_BUFFERS = ("codes", "center", "scale", "step", "mean", "loadings", "noise", "counted")


class FillingSizes(NamedTuple):
    """How many codes a column has at most, how many directions there are, and how many counts."""

    codes: int
    directions: int
    counts: int


class Filled(nn.Module):
    """Columns of x with missing values filled in, and how many of some were missing.

    Args:
        codes: What stands for a missing value in each column, NaN for nothing, shape (k, c).
        center: An observed value in the middle of each column, shape (c,).
        scale: Standard deviations of the observed values, shape (c,).
        step: Steps in which these come, zero for continuous ones, shape (c,).
        mean: Means m in these units, shape (c,).
        loadings: W, along which columns vary together, shape (c, r).
        noise: Variance of the rest, shape ().
        counted: Sets of codes, whose numbers of occurrences in a row become columns: zeros and
            ones, shape (k c, j). A set of one is an indicator.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> theta = torch.randn(200, 1)
        >>> x = theta + 0.1 * torch.randn(200, 4)
        >>> x[torch.rand(200, 4) < 0.1] = -999.0
        >>> fill = filling_of(theta, x)
        >>> fill(torch.tensor([[1.0, 1.0, -999.0, 1.0]])).round(decimals=1).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    codes: Tensor
    center: Tensor
    scale: Tensor
    step: Tensor
    mean: Tensor
    loadings: Tensor
    noise: Tensor
    counted: Tensor

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name in _BUFFERS:
            self.register_buffer(name, buffers[name])

    @classmethod
    def blank(cls, sizes: FillingSizes, num: int) -> "Filled":
        """Return one of these sizes for so many columns, whose buffers are still to be loaded."""
        return cls(
            **{name: torch.zeros(num) for name in ("center", "scale", "step", "mean")},
            codes=torch.zeros(sizes.codes, num),
            loadings=torch.zeros(num, sizes.directions),
            noise=torch.ones(()),
            counted=torch.zeros(sizes.codes * num, sizes.counts),
        )

    @property
    def sizes(self) -> FillingSizes:
        """What :meth:`blank` needs."""
        return FillingSizes(len(self.codes), self.loadings.shape[1], self.counted.shape[1])

    @property
    def columns_counted(self) -> Tensor:
        """Numbers of the columns in which codes are counted, in ascending order."""
        return self.counted.any(dim=1).unflatten(0, self.codes.shape).any(dim=0).nonzero().flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Return data (*, c) filled in, and counts of what was missing, shape (*, c + j)."""
        x = x.to(self.center.dtype)
        which = _which_code(x, self.codes)
        missing = which.any(dim=-2)
        z = bounded_columns((x - self.center) / self.scale) - self.mean
        moved = self.scale * (self._expected(z, missing) + self.mean)
        # What comes in steps is filled in by one of them.
        step = torch.where(self.step > 0, self.step, 1.0)
        moved = torch.where(self.step > 0, step * (moved / step).round(), moved)
        filled = torch.where(missing, self.center + moved, x)
        return torch.cat((filled, which.flatten(-2).to(x) @ self.counted), dim=-1)

    def _expected(self, z: Tensor, missing: Tensor) -> Tensor:
        """Return the means (*, c) given what is there of data (*, c), less m."""
        if not self.loadings.shape[1]:
            return torch.zeros_like(z)
        # Where little noise goes with few values, single precision is not enough.
        wide = widest(z.device)
        loadings, noise = self.loadings.to(wide), self.noise.to(wide)
        scores, _ = _scores(z.to(wide), missing, loadings, noise)
        return scores.to(z) @ self.loadings.T


def filling_of(theta: Tensor, x: Tensor) -> Filled | None:
    """Return what fills in missing values of x, ``None`` where no column has a code for them.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c). Rows with NaN or inf do not count.
    """
    device = x.device
    theta, x = _some_rows(theta, x)
    found = codes_of(x)
    most = max(map(len, found), default=0)
    if not most:
        return None
    codes = torch.tensor([(each + most * [torch.nan])[:most] for each in found]).T.contiguous()
    which = _which_code(x, codes)
    missing = which.any(dim=-2)
    seen = x.where(~missing, torch.nan)
    center = seen.nanmedian(dim=0).values
    # Missing values are at the centre there, and deviate by nothing.
    share = (~missing).double().mean(dim=0).clamp_min(1 / len(x))
    scale = spread(x.where(~missing, center)) / share.sqrt().to(x)
    z = bounded_columns((x - center) / scale)
    mean, loadings, noise = (each.float() for each in _directions(z.double(), missing))
    filled = Filled(
        codes=codes,
        center=center,
        scale=scale,
        step=steps_of(seen),
        mean=mean,
        # Another layout in memory would be another rounding.
        loadings=loadings.contiguous(),
        noise=noise,
        counted=_counted(theta, which.flatten(1)),
    )
    return filled.to(device)


def has_codes(x: Tensor) -> bool:
    """Whether some of the columns of data (n, c) have codes for missing values."""
    _, x = _some_rows(x, x)
    return any(map(bool, codes_of(x)))


def _some_rows(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of theta (n, d) and x (n, c) that tell codes and directions, on the CPU."""
    return finite_sample(theta, x, _ROWS)


def _which_code(x: Tensor, codes: Tensor) -> Tensor:
    """Return which of the codes (k, c) stands at each value of data (*, c), shape (*, k, c)."""
    return x.unsqueeze(-2) == codes


def _directions(z: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return m (c,), W (c, r) and the variance of the noise () of data with missing values.

    Args:
        z: In standard deviations, shape (n, c); what stands at missing entries does not count.
        missing: Which these are, shape (n, c).
    """
    n, c = z.shape
    rank = min(_DIRECTIONS, n // _ROWS_EACH, c // _COLUMNS_EACH)
    there = (~missing).to(z)
    z = z.where(~missing, 0.0)
    num = there.sum(dim=0).clamp_min(1)
    mean, noise = z.sum(dim=0) / num, z.new_ones(())
    loadings = torch.randn(c, rank, generator=torch.Generator().manual_seed(0)).to(z)
    for _ in range(_STEPS if rank else 0):
        scores, covariances = _scores(z - mean, missing, loadings, noise)
        # Each column's regression on the scores of the rows in which it is there.
        squares = scores.unsqueeze(-1) * scores.unsqueeze(-2) + covariances
        sums = (there.T @ squares.flatten(1)).unflatten(-1, (rank, rank))
        ridge = _QUIETEST * torch.eye(rank).to(z)
        products = ((z - mean) * there).T @ scores
        loadings = torch.linalg.solve(sums + ridge, products)
        mean = ((z - scores @ loadings.T) * there).sum(dim=0) / num
        rest = ((z - mean - scores @ loadings.T) * there).square().sum()
        unsure = torch.einsum("cr,cs,nrs,nc->", loadings, loadings, covariances, there)
        noise = ((rest + unsure) / there.sum()).clamp_min(_QUIETEST)
    return mean, loadings, noise


def _scores(z: Tensor, missing: Tensor, loadings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (*, r) and covariances (*, r, r) of t given what is there of z (*, c)."""
    there, rank = (~missing).to(z), loadings.shape[1]
    squares = (loadings.unsqueeze(-1) * loadings.unsqueeze(-2)).flatten(1)
    precision = (there @ squares).unflatten(-1, (rank, rank)) + noise * torch.eye(rank).to(z)
    # A GPU need not wait to see whether there is one: noise sees to that.
    inverse = torch.linalg.inv_ex(precision).inverse
    observed = torch.where(missing, 0.0, z) @ loadings
    return (inverse @ observed.unsqueeze(-1)).squeeze(-1), noise * inverse


def _counted(theta: Tensor, which: Tensor) -> Tensor:
    """Return sets of codes, zeros and ones (m, j), whose numbers tell of theta.

    Args:
        theta: Parameters, shape (n, d).
        which: Which of m codes stand in each row, shape (n, m).
    """
    # Codes that stand in the same rows say the same.
    first: dict[bytes, int] = {}
    for i in which.any(dim=0).nonzero().flatten().tolist():
        first.setdefault(which[:, i].numpy().tobytes(), i)
    single = torch.eye(which.shape[1])[:, list(first.values())]
    every = which.any(dim=0).to(single).unsqueeze(-1)
    candidates = torch.cat((single, every), dim=1) if len(first) > 1 else single
    return candidates[:, dependent(theta, which.to(single) @ candidates)]
