"""What the default flow sees of x, as modules one after the other.

Which columns (:mod:`sbi_jeffreys.selection.screening`), what stands where a value is missing
(:mod:`sbi_jeffreys.selection.missing`), in which units and how bent
(:mod:`sbi_jeffreys.features.columns`), or which components of them
(:mod:`sbi_jeffreys.selection.components`). Of many columns in levels the flow sees sums that are
statistics of a likelihood (:mod:`sbi_jeffreys.selection.statistics`), the proxy the columns.

All of this is chosen by data (:func:`what_to_see`). To build a flow again, whose weights and
buffers are then loaded, a few sizes are enough (:class:`Selection`).
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.columns import features_of
from ..features.scales import standardizer
from .components import Components, components_of
from .missing import Filled, FillingSizes, codes_not_in, filling_of
from .screening import Columns, informative
from .statistics import NO_STATISTICS, Statistics, StatisticsSizes, statistics_of

__all__ = ["Seen", "Selection", "missed", "new_codes", "what_to_see"]


class Seen(NamedTuple):
    """The modules that make features of x for flow and proxy, and sums that the flow sees of these.

    The flow sees all of them where there are no ``sums``.
    """

    features: list[nn.Module]
    sums: Statistics | None


class Selection(NamedTuple):
    """What of x a flow sees, in numbers that are enough to build its modules again.

    ``columns`` has the numbers of those that it sees of a vector, ``None`` for all of any x;
    ``filling`` the sizes of what fills in missing values, ``None`` if nothing does; ``components``
    is the number of principal components, 0 for columns; ``statistics`` has the sizes of sums of
    columns in levels, zeros for none.
    """

    columns: Sequence[int] | None = None
    filling: FillingSizes | None = None
    components: int = 0
    statistics: StatisticsSizes = NO_STATISTICS

    @classmethod
    def of(cls, flow: nn.Module) -> "Selection":
        """Return what a flow sees."""
        found: dict[type, nn.Module] = {}
        for module in flow.modules():
            found.setdefault(type(module), module)
        columns, filled = found.get(Columns), found.get(Filled)
        components, sums = found.get(Components), found.get(Statistics)
        return cls(
            columns.kept.tolist() if isinstance(columns, Columns) else None,
            filled.sizes if isinstance(filled, Filled) else None,
            len(components.offset) if isinstance(components, Components) else 0,
            sums.sizes if isinstance(sums, Statistics) else NO_STATISTICS,
        )

    def blank(self, theta: Tensor, x: Tensor) -> Seen:
        """Return modules of these sizes, whose buffers are still to be loaded.

        Args:
            theta: Some parameters, shape (n, d).
            x: Some data of the right shape, (n, *event).

        Raises:
            ValueError: If x has no such columns.
        """
        first = [] if self.columns is None else _only(_checked(self.columns, x), x)
        flat = nn.Sequential(*first)(x).flatten(1)
        fill = None if self.filling is None else Filled.blank(self.filling, flat.shape[1])
        features = _features(theta, x, first, fill, by_column=self.columns is not None)
        num, sums = nn.Sequential(*features)(x).shape[1], None
        if self.statistics.number:
            sums = Statistics.blank(num, self.statistics)
        elif self.components:
            features.append(Components.blank(num, self.components))
        return Seen(features, sums)


def what_to_see(
    theta: Tensor,
    x: Tensor,
    columns: Sequence[int] | None = None,
    components: int | None = None,
    *,
    statistics: bool = True,
) -> Seen:
    """Return what makes features of x: of all columns or some, or components.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        columns: Numbers of the columns of x to look at, where it is a vector; by default those
            that say something of theta.
        components: Number of principal components in place of these, 0 for the columns
            themselves; by default those that tell more of theta, if there are such.
        statistics: Whether the flow may see statistics of columns in levels, where nothing was
            said of components.

    Raises:
        ValueError: If x has no such columns, or not so many components.
    """
    first: list[nn.Module] = []
    # Images and series have neighbours: no column of theirs is looked at by itself.
    by_column = x.dim() == 2 or columns is not None
    if columns is not None:
        first = _only(_checked(columns, x), x)
        fill = filling_of(theta, nn.Sequential(*first)(x))
    elif by_column:
        kept, fill = _columns_to_see(theta, x)
        first = _only(kept, x)
        if first and fill is not None:
            # It was of all columns; a code that is rare in these has been found in others.
            fill = filling_of(theta, first[0](x), first[0](fill.codes))
    else:
        fill = filling_of(theta, x.flatten(1))
    features = _features(theta, x, first, fill, by_column=by_column)
    made = nn.Sequential(*features)(x)
    found = components_of(theta, made, components)
    choose = statistics and components is None
    sums = statistics_of(theta, made, found) if choose else None
    if found is not None and sums is None:
        features.append(found)
    return Seen(features, sums)


def missed(flow: nn.Module, theta: Tensor, x: Tensor, rows: Tensor) -> list[int]:
    """Return the columns of x that a flow leaves out, and that would be looked at now.

    Args:
        flow: A flow, whatever it sees.
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        rows: Which of them are trained on.
    """
    kept = Selection.of(flow).columns
    if kept is None:
        return []
    now, _ = _columns_to_see(theta[rows], x[rows])
    return sorted(set(now.tolist()) - set(kept))


def new_codes(flow: nn.Module, x: Tensor, rows: Tensor) -> dict[float, list[int]]:
    """Return codes of missing values that a flow takes for numbers, with the columns they are in.

    Args:
        flow: A flow that looks for such codes when it is built.
        x: Data, shape (n, *event).
        rows: Which of them are trained on.
    """
    found = {type(module): module for module in flow.modules()}
    columns, filled = found.get(Columns), found.get(Filled)
    x = x[rows].flatten(1)
    seen = columns.kept if isinstance(columns, Columns) else torch.arange(x.shape[1])
    known = filled.codes if isinstance(filled, Filled) else None
    new = codes_not_in(known, x[:, seen.to(x.device)])
    return {code: seen[where].tolist() for code, where in new.items()}


def _columns_to_see(theta: Tensor, x: Tensor) -> tuple[Tensor, Filled | None]:
    """Return the numbers of the columns of x (n, c) that say something, by value or by absence.

    And what fills in missing values of all columns, if there are any.
    """
    fill = filling_of(theta, x)
    if fill is None:
        return informative(theta, x), None
    kept = informative(theta, fill(x)[:, : x.shape[1]])
    return torch.cat((kept, fill.columns_counted.cpu())).unique(), fill


def _only(kept: Tensor, x: Tensor) -> list[nn.Module]:
    """Return what leaves out the other columns of x (n, c), if there are others."""
    every = torch.equal(kept, torch.arange(x.shape[1]))
    return [] if every else [Columns(kept.to(x.device))]


def _features(
    theta: Tensor, x: Tensor, first: list[nn.Module], fill: Filled | None, *, by_column: bool
) -> list[nn.Module]:
    """Return what makes features of what is looked at, in standard deviations or bent."""
    if by_column:
        first = first if fill is None else [*first, fill]
        return [*first, features_of(theta, nn.Sequential(*first)(x))]
    if fill is None:
        return [standardizer(x), nn.Flatten()]
    return [nn.Flatten(), fill, standardizer(fill(x.flatten(1)))]


def _checked(columns: Sequence[int], x: Tensor) -> Tensor:
    """Return numbers of columns of x (n, c), which has them, shape (k,)."""
    try:
        kept = torch.tensor([operator.index(column) for column in columns], dtype=torch.long)
    except TypeError:
        kept = torch.empty(0)
    different = len(kept) == len(kept.unique()) > 0
    if x.dim() != 2 or not different or kept.min() < 0 or kept.max() >= x.shape[1]:
        raise ValueError(
            "columns must be different numbers of columns of x, at least one, got "
            f"{columns!r} for x of shape {tuple(x.shape[1:])}."
        )
    return kept
