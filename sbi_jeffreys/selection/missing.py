r"""Values that are missing from x and marked by a code, like -999: found, and filled in.

In standard deviations such a code leaves all values that are there one and the same number. Bent or
cut off as an outlier it still lies beyond everything that a value can be, and where each column
misses some, most rows have one. So a code is taken for what it says, which is nothing: a missing
value is replaced by its mean given the row's others, under a Gaussian whose columns vary together
along a few directions. With columns in standard deviations, mean :math:`m`, axes :math:`V` and the
share :math:`s` of the variance along each that is no noise, it is the fixed point of

.. math:: z \leftarrow m + V\, \mathrm{diag}(s)\, V^\top (z - m)

at missing entries, and the axes are those of data that are filled in by them (expectation
maximisation, once for all rows).

What is a code? A value that many rows or columns share, or up to three such, across a gap from all
others, of which there are many different ones.

That a value is missing may itself say something of :math:`\theta` (nothing was seen, because it was
faint). Where a test finds that, a column of zeros and ones says so. One more has the number of
missing values, which may tell where no single one does.

References:
    | Probabilistic principal component analysis (Tipping and Bishop, 1999), section 3 and appendix
      B, https://doi.org/10.1111/1467-9868.00196
    | EM algorithms for PCA and SPCA (Roweis, 1998), section 4: missing data
    | Missing data in amortized simulation-based neural posterior estimation (Wang et al., 2024),
      https://doi.org/10.1371/journal.pcbi.1012184: what stands for missing values, and indicators
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.principal import bounded_columns
from ..features.scales import finite_sample, spread
from ..likelihood.start import steps_of
from .screening import dependent

__all__ = ["Filled", "FillingSizes", "filling_of", "has_codes"]

# Rows that tell codes and axes.
_ROWS = 2000
# Codes at a time, how often, in all columns, and in what share of as many rows there is one at
# least, different values besides, and the gap between, relative to the range of these.
_MOST_CODES, _FEWEST, _SHARE, _DIFFERENT, _GAP = 3, 5, 0.01, 10, 0.4
# How often a far group of values is set aside: codes below and above, and single outliers.
_GROUPS = 4
# Axes at most, rows and columns for each of them at least, steps until they are settled.
_AXES, _ROWS_EACH, _COLUMNS_EACH, _STEPS = 10, 10, 2, 30
# How often the number of steps towards the fixed point is doubled. A step leaves as much of the way
# as missing entries make up of an axis. Nothing is solved for: a GPU need not wait.
_DOUBLINGS = 8


class FillingSizes(NamedTuple):
    """How many codes a column has at most, how many axes there are, and how many counts."""

    codes: int
    axes: int
    counts: int


class Filled(nn.Module):
    """Columns of x with missing values filled in, and how many of some were missing.

    Args:
        codes: What stands for a missing value in each column, shape (k, c).
        coded: Which columns have codes at all, shape (c,).
        center: An observed value in the middle of each column, shape (c,).
        scale: Their standard deviations, shape (c,).
        step: Steps in which their values come, zero for continuous ones, shape (c,).
        mean: Means in these units, shape (c,).
        axes: Axes along which columns vary together, shape (c, r).
        back: These transposed, times the share of variance that is no noise, shape (r, c).
        counted: In which columns missing values are counted, one (an indicator) or several, zeros
            and ones, shape (c, j).

    Example:
        >>> theta = torch.randn(200, 1)
        >>> x = theta + 0.1 * torch.randn(200, 4)
        >>> x[torch.rand(200, 4) < 0.1] = -999.0
        >>> fill = filling_of(theta, x)
        >>> fill(torch.tensor([[1.0, 1.0, -999.0, 1.0]])).round(decimals=1).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    codes: Tensor
    coded: Tensor
    center: Tensor
    scale: Tensor
    step: Tensor
    mean: Tensor
    axes: Tensor
    back: Tensor
    counted: Tensor

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name in self.__annotations__:
            self.register_buffer(name, buffers[name])

    @classmethod
    def blank(cls, sizes: FillingSizes, num: int) -> "Filled":
        """Return one of these sizes for so many columns, whose buffers are still to be loaded."""
        flat = {name: torch.zeros(num) for name in ("center", "scale", "step", "mean")}
        return cls(
            codes=torch.zeros(sizes.codes, num),
            coded=torch.zeros(num, dtype=torch.bool),
            axes=torch.zeros(num, sizes.axes),
            back=torch.zeros(sizes.axes, num),
            counted=torch.zeros(num, sizes.counts),
            **flat,
        )

    @property
    def sizes(self) -> FillingSizes:
        """What :meth:`blank` needs."""
        return FillingSizes(len(self.codes), len(self.back), self.counted.shape[1])

    def missing(self, x: Tensor) -> Tensor:
        """Return which values of data (*, c) are missing, shape (*, c)."""
        return _is_code(x, self.codes, self.coded)

    def forward(self, x: Tensor) -> Tensor:
        """Return data (*, c) filled in, and counts of what was missing, shape (*, c + j)."""
        missing = self.missing(x)
        moved = bounded_columns((x - self.center) / self.scale) - self.mean
        moved = self.scale * (self._expected(moved.where(~missing, 0.0), missing) + self.mean)
        # What comes in steps is filled in by one of them.
        stepped = self.step * (moved / self.step.clamp_min(1e-30)).round()
        moved = torch.where(self.step > 0, stepped, moved)
        filled = torch.where(missing, self.center + moved, x)
        return torch.cat((filled, missing.to(x) @ self.counted), dim=-1)

    def _expected(self, z: Tensor, missing: Tensor) -> Tensor:
        """Return the fixed point at data (*, c) that are zero where they are missing."""
        rank = len(self.back)
        if not rank:
            return z
        # In terms of the scores t: t = V' z + A t, where A has the missing entries' part.
        pairs = (self.axes.unsqueeze(-1) * self.back.T.unsqueeze(-2)).flatten(1)
        powers = (missing.to(z) @ pairs).unflatten(-1, (rank, rank))
        scores = (z @ self.axes).unsqueeze(-1)
        # The sum of the powers of A, in which no eigenvalue reaches one.
        for _ in range(_DOUBLINGS):
            scores = scores + powers @ scores
            powers = powers @ powers
        return scores.squeeze(-1) @ self.back


def filling_of(theta: Tensor, x: Tensor) -> Filled | None:
    """Return what fills in missing values of x, ``None`` where no column has a code for them.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c). Rows with NaN or inf do not count.
    """
    device = x.device
    theta, x = _some_rows(theta, x)
    found = _codes_of(x)
    most = max(map(len, found), default=0)
    if not most:
        return None
    coded = torch.tensor([bool(codes) for codes in found])
    # A column with fewer codes has one of them several times.
    padded = [(codes * most)[:most] if codes else [0.0] * most for codes in found]
    codes = torch.tensor(padded).T.contiguous()
    missing = _is_code(x, codes, coded)
    seen = x.where(~missing, torch.nan)
    center = seen.nanmedian(dim=0).values
    scale = spread(x.where(~missing, center))
    z = bounded_columns((x - center) / scale)
    # Another layout in memory would be another rounding.
    directions = _directions(z.double(), missing)
    mean, axes, back = (each.float().contiguous() for each in directions)
    filled = Filled(
        codes=codes,
        coded=coded,
        center=center,
        scale=scale,
        step=steps_of(seen).where(coded, 0.0),
        mean=mean,
        axes=axes,
        back=back,
        counted=_counted(theta, missing),
    )
    return filled.to(device)


def has_codes(x: Tensor) -> bool:
    """Whether some of the columns of data (n, c) have codes for missing values."""
    _, x = _some_rows(x, x)
    return any(map(bool, _codes_of(x)))


def _some_rows(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of theta (n, d) and x (n, c) that tell codes and axes, on the CPU."""
    return finite_sample(theta, x, _ROWS)


def _is_code(x: Tensor, codes: Tensor, coded: Tensor) -> Tensor:
    return (x.unsqueeze(-2) == codes).any(dim=-2) & coded


def _codes_of(x: Tensor) -> list[list[float]]:
    """Return the codes of each column of data (n, c).

    What is a code in some columns is one in each that has no values near to it, which may be rarely
    missing, or not in these rows.
    """
    own: list[dict[float, int]] = [{} for _ in x.T]
    if len(x) >= _FEWEST:
        low, high = x.aminmax(dim=0)
        # Most columns are continuous, and nothing need be sorted.
        repeat = torch.maximum((x == low).sum(dim=0), (x == high).sum(dim=0)) > 1
        for i in repeat.nonzero().flatten().tolist():
            own[i] = _candidates(x[:, i])
    counts = sum(map(Counter, own), Counter())
    codes = [value for value, count in counts.items() if count >= _fewest(x)]
    values = x.where(~torch.isin(x, x.new_tensor(codes)), torch.nan).T
    return [
        [code for code in codes if code in found or _is_apart(code, of[~of.isnan()])]
        for found, of in zip(own, values, strict=True)
    ]


def _fewest(x: Tensor) -> float:
    return max(_FEWEST, _SHARE * len(x))


def _is_apart(code: float, values: Tensor) -> bool:
    """Whether a code lies across a gap from all values of a column (m,), if there are any."""
    if not len(values):
        return False
    low, high = (end.item() for end in values.aminmax())
    distance = max(low - code, code - high)
    return distance > 0 and distance >= _GAP * (high - low)


def _candidates(column: Tensor) -> dict[float, int]:
    """Return values of a column (n,) that are not the only ones of theirs and may be codes."""
    values, counts = column.unique(return_counts=True)
    found: dict[float, int] = {}
    for _ in range(_GROUPS):
        if len(values) <= _DIFFERENT:
            break
        gaps = values.diff()
        at = int(gaps.argmax()) + 1
        groups = slice(at), slice(at, None)
        far, rest = groups if at <= len(values) - at else groups[::-1]
        others = values[rest]
        if len(others) < _DIFFERENT or gaps[at - 1] < _GAP * (others[-1] - others[0]):
            break
        if len(values[far]) <= _MOST_CODES and counts[far].min() > 1:
            found |= dict(zip(values[far].tolist(), counts[far].tolist(), strict=True))
        elif counts[far].sum() >= _fewest(column):
            # Two groups of values, neither of which is a code.
            break
        values, counts = others, counts[rest]
    return found


def _directions(z: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (c,), axes (c, r) and these with shares (r, c) of data with missing entries.

    Args:
        z: In standard deviations, shape (n, c); what stands at missing entries does not count.
        missing: Which these are, shape (n, c).
    """
    n, c = z.shape
    rank = min(_AXES, n // _ROWS_EACH, c // _COLUMNS_EACH)
    axes = torch.randn(c, rank, generator=torch.Generator().manual_seed(0)).to(z)
    z = z.where(~missing, 0.0)
    mean, back = z.sum(dim=0) / (~missing).sum(dim=0).clamp_min(1), axes.T
    z = z.where(~missing, mean)
    # Of the observed entries, those that are left when axes and their scores are known.
    free = (~missing).sum() * (1 - rank / c) * (1 - rank / n)
    for _ in range(_STEPS if rank else 0):
        mean = z.mean(dim=0)
        centred = z - mean
        axes = torch.linalg.qr(centred.T @ (centred @ axes)).Q
        scores = centred @ axes
        variances, turn = torch.linalg.eigh(scores.T @ scores / n)
        axes, scores = axes @ turn, scores @ turn
        noise = (centred - scores @ axes.T).where(~missing, 0.0).square().sum() / free
        shares = (1 - noise / variances.clamp_min(1e-30)).clamp_min(0.0)
        back = shares.unsqueeze(-1) * axes.T
        z = z.where(~missing, mean + scores @ back)
    return mean, axes, back


def _counted(theta: Tensor, missing: Tensor) -> Tensor:
    """Return in which of c columns to count missing values, those that tell of theta, (c, j)."""
    # Columns that miss the same rows say the same.
    first: dict[bytes, int] = {}
    for i in missing.any(dim=0).nonzero().flatten().tolist():
        first.setdefault(missing[:, i].numpy().tobytes(), i)
    single = torch.eye(len(missing.T))[:, list(first.values())]
    every = missing.any(dim=0, keepdim=True).T.to(single)
    candidates = torch.cat((single, every), dim=1) if len(first) > 1 else single
    return candidates[:, dependent(theta, missing.to(single) @ candidates)]
