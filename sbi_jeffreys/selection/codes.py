"""Codes of missing values in x, like -999.

What is one? A value that many rows share, or up to three such, across a gap from all others, of
which there are many different ones. Among positive numbers negative ones need no gap; beyond levels
that grow by factors, the next of these is none.
"""

from collections import Counter

import torch
from torch import Tensor

__all__ = ["codes_of"]

# How often a code occurs at least, in all columns together and as a share of the rows.
_FEWEST, _SHARE = 5, 0.01
# How many different other values there are at least, and how wide the gap is, relative to the range
# of these.
_DIFFERENT, _GAP = 10, 0.4
# Where the others come in levels, of which each is there again and again, a far value may be the
# next one of a sequence like powers of two or four: how wide the gap is, relative to the one beside
# it, or, on the scale of logarithms, to the range of the others.
_BESIDE = 5.0
# Codes on one side of the others at most; groups of far values that are looked at: codes below and
# above, and single outliers.
_MOST_CODES, _GROUPS = 3, 4


def codes_of(x: Tensor) -> list[list[float]]:
    """Return the codes of each column of data (n, c).

    What is a code in two columns is one in each that has no values near to it: it may be missing
    rarely, or not in these rows.
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
    shared = [code for code in codes if sum(code in each for each in own) > 1]
    values = x.where(~torch.isin(x, x.new_tensor(codes)), torch.nan).T if shared else x.T
    return [
        [code for code in codes if code in found or (code in shared and _is_apart(code, of))]
        for found, of in zip(own, values, strict=True)
    ]


def _fewest(x: Tensor) -> float:
    return max(_FEWEST, _SHARE * len(x))


def _is_apart(code: float, column: Tensor) -> bool:
    """Whether a code lies across a gap from the many different values of a column (n,)."""
    values = column[~column.isnan()].unique()
    if len(values) < _DIFFERENT:
        return False
    low, high = values[0].item(), values[-1].item()
    return max(low - code, code - high) >= _GAP * (high - low)


def _candidates(column: Tensor) -> dict[float, int]:
    """Return values of a column (n,) that are not the only ones of theirs and may be codes."""
    values, counts = column.unique(return_counts=True)
    found: dict[float, int] = {}
    num = int((values < 0).sum())
    few = 0 < num <= min(_MOST_CODES, len(values) - _DIFFERENT)
    continuous = not _recur(counts[num:])
    if few and continuous and values[num] > 0 and counts[:num].min() > 1:
        # Below positive numbers, however small these are.
        found = dict(zip(values[:num].tolist(), counts[:num].tolist(), strict=True))
        values, counts = values[num:], counts[num:]
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
        if _recur(counts[rest]) and not _breaks_off(values[far], others):
            # The largest levels of a sequence are no codes.
            break
        if len(values[far]) <= _MOST_CODES and counts[far].min() > 1:
            found |= dict(zip(values[far].tolist(), counts[far].tolist(), strict=True))
        elif counts[far].sum() >= _fewest(column):
            # Two groups of values, neither of which is a code.
            break
        values, counts = others, counts[rest]
    return found


def _recur(counts: Tensor) -> bool:
    """Whether values that occur so often, (m,), are levels rather than each there by itself."""
    return bool(2 * len(counts) <= counts.sum())


def _breaks_off(far: Tensor, others: Tensor) -> bool:
    """Whether far values are across more than the next gap of a sequence that others make.

    Args:
        far: Values on one side of the others, ascending.
        others: Levels, ascending, two at least.
    """
    if far[0] < others[0]:
        # As if they were the largest.
        far, others = -far.flip(0), -others.flip(0)
    first, last, before = far[0], others[-1], others[-2]
    if first - last >= _BESIDE * (last - before) or first * last <= 0:
        return True
    sizes = others[others * last > 0].abs().log()
    return bool((first / last).log().abs() >= _GAP * (sizes.max() - sizes.min()))
