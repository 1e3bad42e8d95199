"""Which simulations are held out, from one call of ``train`` to the next.

A flow that goes on with more simulations has seen those that it was trained on: held out now, they
would speak for whatever remembers them. So rows stay what they were, and only new ones are split.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NO_ROWS", "Split", "check_enough", "split", "stored_rows"]


class Split(NamedTuple):
    """Numbers of the simulations that are trained on, and held out, in the order of appending."""

    train: Tensor
    held_out: Tensor


NO_ROWS = Split(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
"""The split of a flow that has not been trained."""


def check_enough(num: int, fraction: float | None) -> None:
    """Refuse simulations that are too few to train and to validate.

    Args:
        num: Their number.
        fraction: Fraction of them that is held out; ``None`` if others are.

    Raises:
        ValueError: With the numbers of both.
    """
    num_train = num if fraction is None else int((1 - fraction) * num)
    held_out = "others held out" if fraction is None else f"validation_fraction={fraction:g}"
    if num_train < 2 or (fraction is not None and num_train == num):
        raise ValueError(
            f"{num} simulations are too few with {held_out}: {num_train} to train on and "
            f"{num - num_train} to validate; append more, or pass validation_data."
        )


def stored_rows(sizes: list[int], rounds: list[int], first_round: int) -> Tensor:
    """Return the numbers of the simulations from a round on, among all that were appended.

    Args:
        sizes: How many were appended, call by call.
        rounds: The rounds that they are of.
        first_round: The round.
    """
    per_row = torch.tensor(rounds).repeat_interleave(torch.tensor(sizes))
    return (per_row >= first_round).nonzero()[:, 0]


def split(rows: Tensor, fraction: float | None, before: Split) -> tuple[Split, Split]:
    """Split simulations; those that a flow was trained on, or judged by, stay what they were.

    Where nothing would be left to judge it by, all of these are split anew.

    Args:
        rows: Their numbers, shape (n,).
        fraction: Fraction that is held out, which new ones make up for; ``None`` if no rows are,
            and all are trained on.
        before: How all simulations were split before; :data:`NO_ROWS` for a new flow.

    Returns:
        Places in ``rows`` of those to train on and those to hold out, in random order, and how all
        simulations are split now.
    """
    others = Split(*(each[~torch.isin(each, rows)] for each in before))
    if fraction is None:
        places = Split(torch.randperm(len(rows)), NO_ROWS.held_out)
    else:
        held, seen = (torch.isin(rows, of) for of in (before.held_out, before.train))
        new = (~(held | seen)).nonzero()[:, 0]
        new = new[torch.randperm(len(new))]
        # The fraction is that of all: new ones may come one at a time.
        num = min(max(int((1 - fraction) * len(rows)) - int(seen.sum()), 0), len(new))
        places = Split(new[:num], new[num:])
        if len(new) < len(rows):
            places = Split(_joined(seen, places.train), _joined(held, places.held_out))
            if len(places.train) < 2 or not len(places.held_out):
                return split(rows, fraction, others)
    now = (torch.cat(pair) for pair in zip(others, (rows[each] for each in places), strict=True))
    return places, Split(*now)


def _joined(kept: Tensor, new: Tensor) -> Tensor:
    """Return the places of rows that are kept, and new ones, in random order."""
    together = torch.cat((kept.nonzero()[:, 0], new))
    return together[torch.randperm(len(together))]
