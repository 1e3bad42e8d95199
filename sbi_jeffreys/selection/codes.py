"""Codes of missing values in x, like -999.

What is one? A value that many rows share, or up to three such, across a gap from all others, of
which there are many different ones.
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
