"""Data in few levels (bits, categories, small counts): which they are, and statistics of them."""

import torch
from torch import Tensor, nn

__all__ = ["NUM_STATISTICS", "LevelStatistics", "has_few_levels", "levels_of"]

NUM_STATISTICS = 3
"""The level, its square, whether it is the lowest."""

# Levels of a column at most. With more of them a density is as good. And columns times levels:
# 400 columns of 40 would take nine times as long as Gaussians of their components do.
_MOST_LEVELS, _MOST_CELLS = 40, 5000
# Rows for each level at least: of few rows nearly every one has levels of its own.
_ROWS_OF_LEVEL = 3
# Values that differ by less, in standard deviations, are one level: rounding tells them apart.
_SAME = 1e-4


class LevelStatistics(nn.Module):
    """What an exponential family takes of data in levels: level, square, and whether the lowest.

    Those that follow from the others, of columns with few levels, are zero.

    Args:
        values: Levels of each column, ascending, shape (c, L).
        center: Of each column, shape (c,).
        unit: Of each column, shape (c,).

    Attributes:
        levels: The levels in units, shape (c, L).
        table: Their statistics, shape (c, L, 3).
    """

    center: Tensor
    unit: Tensor
    levels: Tensor
    table: Tensor

    def __init__(self, values: Tensor, center: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center.clone())
        self.register_buffer("unit", unit)
        self.register_buffer("levels", ((values.T - center) / unit).T.contiguous())
        self.register_buffer("table", self._of(self.levels))

    def in_units(self, context: Tensor) -> Tensor:
        """Return embedded data (*, c) in units."""
        return (context - self.center) / self.unit

    def forward(self, context: Tensor) -> Tensor:
        """Return the statistics of embedded data (*, c), shape (*, c, 3)."""
        # Jittered data lie between levels. Beyond them there is nothing to learn from.
        lowest, highest = self.levels[:, 0], self.levels[:, -1]
        z = torch.minimum(torch.maximum(self.in_units(context), lowest), highest)
        return self._of(z.unsqueeze(-1)).squeeze(-2)

    def _of(self, z: Tensor) -> Tensor:
        """Return the statistics of data (*, c, B) in units, shape (*, c, B, 3)."""
        steps, first = self.levels.diff(dim=1), self.levels[:, :1]
        three, four = ((steps > 0).sum(dim=1, keepdim=True) >= num for num in (2, 3))
        step = steps[:, :1] if steps.shape[1] else torch.ones_like(first)
        atom = (1 - (z - first) / torch.where(step > 0, step, torch.ones_like(step))).clamp(0, 1)
        return torch.stack((z, (z.square() - 1) * three, atom * four), dim=-1)


def has_few_levels(context: Tensor, gaps: Tensor) -> bool:
    """Whether all columns of embedded data (n, c), of these steps (c,), have few levels.

    Of a column that never varies Gaussians are as sure as they like, and nothing compares.
    """
    if not (gaps > 0).all():
        return False
    most = max(len(_merged(column)[0]) for column in context.T)
    few = min(_MOST_LEVELS, _MOST_CELLS / context.shape[1], len(context) / _ROWS_OF_LEVEL)
    return most <= few


def levels_of(context: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels of each column of data (n, c), and their numbers of rows, (c, L).

    Columns with fewer levels repeat their highest, with no rows.

    Raises:
        ValueError: If a column has too many.
    """
    levels = [_merged(column) for column in context.T]
    numbers = [len(values) for values, _ in levels]
    num = max(numbers)
    if not min(numbers) or num > _MOST_LEVELS:
        raise ValueError(
            f"Columns of the embedded data have {min(numbers)} to {num} levels: a likelihood of "
            f"levels is for one to {_MOST_LEVELS}, such as bits and small counts."
        )
    values = torch.stack([torch.cat((v, v[-1:].expand(num - len(v)))) for v, _ in levels])
    counts = torch.stack([nn.functional.pad(n, (0, num - len(n))) for _, n in levels])
    return values, counts.to(context)


def _merged(column: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels of a column (n,), ascending, and their numbers of rows."""
    column = column[column.isfinite()]
    values, counts = column.unique(return_counts=True)
    if len(values) < 2:
        return values, counts
    new = torch.cat((values.new_ones(1), values.diff() > _SAME * column.std())).bool()
    which = new.cumsum(dim=0) - 1
    return values[new], counts.new_zeros(int(new.sum())).index_add(0, which, counts)
