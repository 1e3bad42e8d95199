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
faint), or of how another column is to be read (the instrument was in its other mode). Where a test
finds that, a column of zeros and ones says so, one for each code. One more has the number of
missing values, which may tell where no single one does.

References:
    | Probabilistic principal component analysis (Tipping and Bishop, 1999), section 3 and appendix
      B, https://doi.org/10.1111/1467-9868.00196
    | Practical approaches to principal component analysis in the presence of missing values (Ilin
      and Raiko, 2010), section 3.2, https://jmlr.org/papers/v11/ilin10a.html
    | Missing data in amortized simulation-based neural posterior estimation (Wang et al., 2024),
      https://doi.org/10.1371/journal.pcbi.1012184: what stands for missing values, and indicators
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..features.principal import bounded_columns
from ..features.scales import finite_sample, spread
from ..likelihood.start import steps_of
from ..utils.devices import widest
from .codes import codes_of
from .screening import dependent, dependent_reading

__all__ = ["Filled", "FillingSizes", "codes_not_in", "filling_of", "has_codes"]

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
        counted: What becomes a column of its own, shape (j,): whether a code stands in a row, by
            its place among those of all columns, and, at k c, how many stand there.

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
            counted=torch.zeros(sizes.counts, dtype=torch.long),
        )

    @property
    def sizes(self) -> FillingSizes:
        """What :meth:`blank` needs."""
        return FillingSizes(len(self.codes), self.loadings.shape[1], len(self.counted))

    @property
    def columns_counted(self) -> Tensor:
        """Numbers of the columns in which codes are counted, in ascending order."""
        num = self.codes.numel()
        of_codes = torch.arange(num, device=self.codes.device).view_as(self.codes)
        every = (self.counted == num).any() & ~self.codes.isnan()
        return (every | torch.isin(of_codes, self.counted)).any(dim=0).nonzero().flatten()

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
        stands = which.flatten(-2).to(x)
        counts = torch.cat((stands, stands.sum(dim=-1, keepdim=True)), dim=-1)
        return torch.cat((filled, counts.index_select(-1, self.counted)), dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        counted = state_dict.get(prefix + "counted")
        if counted is not None and counted.dim() == 2:
            # In files before format 3.14: the sets of codes that are counted, zeros and ones.
            single = counted.sum(dim=0) == 1
            counted = torch.where(single, counted.argmax(dim=0), len(counted))
            state_dict[prefix + "counted"] = counted
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _expected(self, z: Tensor, missing: Tensor) -> Tensor:
        """Return the means (*, c) given what is there of data (*, c), less m."""
        if not self.loadings.shape[1]:
            return torch.zeros_like(z)
        # Where little noise goes with few values, single precision is not enough.
        wide = widest(z.device)
        loadings, noise = self.loadings.to(wide), self.noise.to(wide)
        scores, _ = _scores(z.to(wide), missing, loadings, noise)
        return scores.to(z) @ self.loadings.T


def filling_of(theta: Tensor, x: Tensor, codes: Tensor | None = None) -> Filled | None:
    """Return what fills in missing values of x, ``None`` where no column has a code for them.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c). Rows with NaN or inf do not count.
        codes: What stands for a missing value in each column, NaN for nothing, shape (k, c); by
            default what is found in these data.
    """
    device = x.device
    theta, x = _some_rows(theta, x)
    codes = _codes_in(x) if codes is None else codes.cpu()
    if not bool(codes.isfinite().any()):
        return None
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
        counted=_counted(theta, which.flatten(1), z, missing),
    )
    return filled.to(device)


def has_codes(x: Tensor) -> bool:
    """Whether some of the columns of data (n, c) have codes for missing values."""
    return bool(_codes_in(_some_rows(x, x)[1]).isfinite().any())


def codes_not_in(known: Tensor | None, x: Tensor) -> dict[float, list[int]]:
    """Return codes that data (n, c) have and others did not, with the numbers of their columns.

    Args:
        known: Codes of the others, NaN for nothing, shape (k, c); ``None`` for none.
        x: Data. Rows with NaN or inf do not count.
    """
    found = _codes_in(_some_rows(x, x)[1])
    if known is not None:
        found = found.where((found != known.cpu().unsqueeze(1)).all(dim=0), torch.nan)
    new: dict[float, list[int]] = {}
    for column, codes in enumerate(found.T):
        for code in codes[codes.isfinite()].tolist():
            new.setdefault(code, []).append(column)
    return new


def _codes_in(x: Tensor) -> Tensor:
    """Return the codes of each column of data (n, c), NaN for nothing, shape (k, c)."""
    found = codes_of(x)
    most = max(map(len, found), default=0)
    rows = [(each + most * [torch.nan])[:most] for each in found]
    return torch.tensor(rows).view(len(found), most).T.contiguous()


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


def _counted(theta: Tensor, which: Tensor, z: Tensor, missing: Tensor) -> Tensor:
    """Return which codes to count, shape (j,); their number for all of them together.

    Args:
        theta: Parameters, shape (n, d).
        which: Which of m codes stand in each row, shape (n, m).
        z: Data, shape (n, c).
        missing: Which of them are missing, shape (n, c).
    """
    # Codes that stand in the same rows say the same.
    first: dict[bytes, int] = {}
    for i in which.any(dim=0).nonzero().flatten().tolist():
        first.setdefault(which[:, i].numpy().tobytes(), i)
    places = torch.tensor(list(first.values()), dtype=torch.long)
    marks = which[:, places].float()
    counts = torch.cat((marks, which.sum(dim=1, keepdim=True)), dim=1)
    found = dependent(theta, counts)
    found[:-1] |= dependent_reading(theta, z, ~missing, marks)
    # The number of one is that one.
    found[-1] &= len(places) > 1
    return torch.cat((places, torch.tensor([which.shape[1]])))[found]
