"""What the default flow sees of x, as modules one after the other.

Which columns (:mod:`sbi_jeffreys.selection.screening`), in which units and how bent
(:mod:`sbi_jeffreys.features.columns`), or which components of them
(:mod:`sbi_jeffreys.selection.components`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..features.columns import features_of
from ..features.scales import standardizer
from .components import components_of
from .screening import Columns, informative

__all__ = ["what_to_see"]


def what_to_see(
    theta: Tensor, x: Tensor, columns: Sequence[int] | None, components: int | None
) -> list[nn.Module]:
    """Return the modules that make features of x: of all columns or some, or components.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        columns: Numbers of the columns of x to look at, where it is a vector; by default those
            that say something of theta.
        components: Number of principal components in place of these, 0 for the columns
            themselves; by default those that tell more of theta, if there are such.

    Raises:
        ValueError: If x has no such columns, or not so many components.
    """
    first: list[nn.Module] = []
    if x.dim() > 2 and columns is None:
        # Images and series have neighbours: no column of theirs is looked at by itself.
        first = [standardizer(x), nn.Flatten()]
    else:
        kept = informative(theta, x) if columns is None else _checked(columns, x)
        if not torch.equal(kept, torch.arange(x.shape[1])):
            first.append(Columns(kept.to(x.device)))
        first.append(features_of(theta, nn.Sequential(*first)(x)))
    found = components_of(theta, nn.Sequential(*first)(x), components)
    return first if found is None else [*first, found]


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
