"""What the default flow sees of x, as modules one after the other.

Which columns (:mod:`sbi_jeffreys.selection.screening`), what stands where a value is missing
(:mod:`sbi_jeffreys.selection.missing`), in which units and how bent
(:mod:`sbi_jeffreys.features.columns`), or which components of them
(:mod:`sbi_jeffreys.selection.components`). Of many columns in levels the flow sees sums that are
statistics of a likelihood (:mod:`sbi_jeffreys.selection.statistics`), the proxy the columns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.columns import features_of
from ..features.scales import standardizer
from .components import components_of
from .missing import Filled, FillingSizes, filling_of
from .screening import Columns, informative, kept_columns
from .statistics import Statistics, StatisticsSizes, statistics_of

__all__ = ["Seen", "filling_sizes", "missed", "what_to_see"]


class Seen(NamedTuple):
    """The modules that make features of x for flow and proxy, and sums that the flow sees of these.

    The flow sees all of them where there are no ``sums``.
    """

    features: list[nn.Module]
    sums: Statistics | None


def what_to_see(
    theta: Tensor,
    x: Tensor,
    columns: Sequence[int] | None,
    components: int | None,
    filling: FillingSizes | None = None,
    statistics: StatisticsSizes | None = None,
) -> Seen:
    """Return what makes features of x: of all columns or some, or components.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        columns: Numbers of the columns of x to look at, where it is a vector; by default those
            that say something of theta.
        components: Number of principal components in place of these, 0 for the columns
            themselves; by default those that tell more of theta, if there are such.
        filling: Sizes of what fills in missing values, to be loaded; by default it is made from
            the data, if any of them are codes of missing ones.
        statistics: Sizes of statistics of columns in levels, to be loaded, zeros for none; by
            default those of a likelihood that tells more of theta, where components may be tried.

    Raises:
        ValueError: If x has no such columns, or not so many components.
    """
    first: list[nn.Module] = []
    fill: Filled | None = None
    # Images and series have neighbours: no column of theirs is looked at by itself.
    by_column = x.dim() == 2 or columns is not None
    if by_column:
        kept, fill = _columns_to_see(theta, x) if columns is None else (_checked(columns, x), None)
        if not torch.equal(kept, torch.arange(x.shape[1])):
            first.append(Columns(kept.to(x.device)))
    flat = nn.Sequential(*first)(x).flatten(1)
    if filling is not None:
        fill = Filled.blank(filling, flat.shape[1])
    elif first or fill is None:
        # What is there is of all columns, or nothing.
        fill = filling_of(theta, flat)
    if by_column:
        first += [] if fill is None else [fill]
        first.append(features_of(theta, nn.Sequential(*first)(x)))
    elif fill is None:
        first = [standardizer(x), nn.Flatten()]
    else:
        first = [nn.Flatten(), fill, standardizer(fill(flat))]
    features = nn.Sequential(*first)(x)
    if statistics is not None and statistics.number:
        return Seen(first, Statistics.blank(features.shape[1], statistics))
    found = components_of(theta, features, components)
    choose = statistics is None and components is None
    sums = statistics_of(theta, features, found) if choose else None
    if found is not None and sums is None:
        first.append(found)
    return Seen(first, sums)


def filling_sizes(module: nn.Module) -> FillingSizes | None:
    """Return the sizes of what fills in missing values for a flow, ``None`` if nothing does."""
    return next((each.sizes for each in module.modules() if isinstance(each, Filled)), None)


def missed(flow: nn.Module, theta: Tensor, x: Tensor, rows: Tensor) -> list[int]:
    """Return the columns of x that a flow leaves out, and that would be looked at now.

    Args:
        flow: A flow, whatever it sees.
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        rows: Which of them are trained on.
    """
    kept = kept_columns(flow)
    if kept is None:
        return []
    now, _ = _columns_to_see(theta[rows], x[rows])
    return sorted(set(now.tolist()) - set(kept))


def _columns_to_see(theta: Tensor, x: Tensor) -> tuple[Tensor, Filled | None]:
    """Return the numbers of the columns of x (n, c) that say something, by value or by absence.

    And what fills in missing values of all columns, if there are any.
    """
    fill = filling_of(theta, x)
    if fill is None:
        return informative(theta, x), None
    kept = informative(theta, fill(x)[:, : x.shape[1]])
    return torch.cat((kept, fill.columns_counted.cpu())).unique(), fill


def _checked(columns: Sequence[int], x: Tensor) -> Tensor:
    """Return numbers of columns of x (n, c), which has them, shape (k,)."""
    kept = torch.as_tensor(columns, dtype=torch.long)
    different = kept.dim() == 1 and len(kept) == len(kept.unique()) > 0
    if x.dim() != 2 or not different or kept.min() < 0 or kept.max() >= x.shape[1]:
        raise ValueError(
            "columns must be different numbers of columns of x, at least one, got "
            f"{list(columns)} for x of shape {tuple(x.shape[1:])}."
        )
    return kept
