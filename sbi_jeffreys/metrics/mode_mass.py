r"""Error of the posterior mass that samples give to each mode.

With :math:`\hat p_k` and :math:`\hat q_k` the fractions of two sets of samples that belong to mode
k = 1..K, the errors are :math:`|\hat p_k - \hat q_k|`, and

.. math:: \mathrm{TV} = \frac12 \sum_k |\hat p_k - \hat q_k|

is the total variation distance between the label histograms: the mass that would have to change
modes. A mean or a log likelihood hardly notices a lost mode; this does. Two exact samplers of n
draws each still differ, by about :math:`\sqrt{2 p_k (1 - p_k) / n}` in each mode.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ModeMassError", "mode_mass_error"]


class ModeMassError(NamedTuple):
    r"""Errors of mode masses.

    Attributes:
        per_mode: :math:`|\hat p_k - \hat q_k|`, shape :math:`(K)`.
        total_variation: Half their sum, in [0, 1].
    """

    per_mode: Tensor
    total_variation: float


def mode_mass_error(
    labels: Tensor, reference: Tensor, *, modes: int | None = None
) -> ModeMassError:
    r"""Compare the fractions of samples in each mode.

    Args:
        labels: Mode of each sample, integers in 0..K - 1, shape :math:`(n)`.
        reference: Mode of each reference sample, integers in 0..K - 1, shape :math:`(m)`.
        modes: Number of modes K. `None` takes the largest label plus one.

    Returns:
        Absolute error of each mode and their total variation.

    Raises:
        ValueError: If labels are empty, not a vector of integers, or not in 0..K - 1.

    Example:
        >>> error = mode_mass_error(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1]))
        >>> error.total_variation
        0.5
    """
    for name, value in (("labels", labels), ("reference", reference)):
        if value.ndim != 1 or len(value) == 0 or value.is_floating_point():
            raise ValueError(
                f"{name} must be a vector of integers, one for each sample, got shape "
                f"{tuple(value.shape)} and type {value.dtype}."
            )
    # Two modes may be told apart by bools, which cannot be counted.
    labels, reference = labels.long(), reference.long()
    largest = int(max(labels.max(), reference.max()))
    smallest = int(min(labels.min(), reference.min()))
    k = largest + 1 if modes is None else modes
    if smallest < 0 or largest >= k:
        raise ValueError(
            f"labels are in {smallest}..{largest}, but must be in 0..{k - 1}; give samples that "
            "belong to no mode a label of their own."
        )
    p, q = (
        torch.bincount(value, minlength=k).double() / len(value) for value in (labels, reference)
    )
    per_mode = (p - q).abs()
    return ModeMassError(per_mode, float(per_mode.sum()) / 2)
