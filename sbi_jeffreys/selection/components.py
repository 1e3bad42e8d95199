r"""Principal components of x in place of its columns, where few of them tell as much.

A series or an image has dozens of columns, or thousands. Parameters move these together, along a
few directions; noise moves each by itself, and networks that see all of them learn it. So the
columns' first ten, twenty or forty principal components are tried. They take the place of the
columns if

- the linear posterior, in closed form and judged by leave-one-out, is hardly less sharp with them;
- and a likelihood that is fitted to them tells more of :math:`\theta` at held-out rows than one of
  the columns (:mod:`sbi_jeffreys.likelihood.information`). Draws of one distribution, or a
  stationary series, say what their spread is in all columns and in no component.

Of the components, those that say nothing of :math:`\theta` are left out as columns are
(:mod:`sbi_jeffreys.selection.screening`). They keep the ratios of their standard deviations: what
noise is left among them stays small.

More than 500 columns are too many for what starts in closed form: there the choice is between few
components and the first 500.

References:
    Analysis of a complex of statistical variables into principal components (Hotelling, 1933),
    https://doi.org/10.1037/h0071325
"""

import torch
from torch import Tensor, nn

from ..features.principal import bounded_columns, principal_axes
from ..features.regression import MOST_FEATURES, linear_entropy
from ..features.scales import finite_sample
from ..likelihood.information import information
from ..utils.row_losses import bounded, mean_and_error
from .screening import informative

__all__ = ["ROWS", "Components", "components_of", "judges_of"]

# Numbers of components to try, of half as many as columns at most.
_NUMBERS = (10, 20, 40)
# Nats by which the linear posterior may be less sharp, and by which held-out rows must be surer.
_LESS_SHARP, _SURER = 0.1, 0.2
# Standard errors that the latter must be, too; more where rows are few, of which a likelihood of
# many columns learns too much, and seems to know less than in a training.
_FEW_ROWS, _ERRORS, _ERRORS_OF_FEW = 250, 1.0, 2.5
ROWS = 5000
"""Rows that decide, at most."""
# Every so manieth of them judges.
_JUDGES = 5
# Fewer rows tell nothing.
_FEWEST_ROWS = 50


class Components(nn.Module):
    """Linear combinations of columns in standard deviations, outliers cut off.

    Args:
        directions: Their coefficients, shape (c, k).
        offset: What is subtracted, shape (k,).

    Example:
        >>> components = Components(torch.tensor([[0.6], [0.8]]), torch.zeros(1))
        >>> components(torch.tensor([[1.0, 2.0]]))
        tensor([[2.2000]])
    """

    directions: Tensor
    offset: Tensor

    def __init__(self, directions: Tensor, offset: Tensor) -> None:
        super().__init__()
        # As it is loaded, or products would be rounded otherwise.
        self.register_buffer("directions", directions.contiguous())
        self.register_buffer("offset", offset)

    @classmethod
    def blank(cls, columns: int, number: int) -> "Components":
        """Return so many of so many columns, whose buffers are still to be loaded."""
        return cls(torch.zeros(columns, number), torch.zeros(number))

    def forward(self, x: Tensor) -> Tensor:
        """Return the components (*, k) of data (*, c)."""
        return bounded_columns(x) @ self.directions - self.offset

    def only(self, kept: Tensor) -> "Components":
        """Return some of them, by their numbers (k,)."""
        return Components(self.directions[:, kept], self.offset[kept])


def components_of(theta: Tensor, x: Tensor, num: int | None = None) -> Components | None:
    """Return the principal components to look at, ``None`` for the columns themselves.

    Args:
        theta: Parameters, shape (n, d).
        x: Data in standard deviations, shape (n, c). Rows with NaN or inf do not count.
        num: How many, the first, or 0 for the columns; by default those that tell more.

    Raises:
        ValueError: If there are not as many.
    """
    if num == 0 or (num is None and x.shape[1] < 2 * min(_NUMBERS)):
        return None
    few_theta, few_x = finite_sample(theta, x, ROWS)
    if num is None and len(few_x) < _FEWEST_ROWS:
        return None
    every = _principal(few_x) if len(few_x) > 1 else None
    most = 0 if every is None else len(every.offset)
    if num is not None and num > most:
        sample = f" (a sample of {len(x)})" if len(few_x) == ROWS < len(x) else ""
        raise ValueError(
            f"components={num}, but {len(few_x)} simulations{sample} of {x.shape[1]} columns have "
            f"{most} principal components: ask for fewer."
        )
    if every is None:
        return None
    chosen = every.only(torch.arange(num)) if num else _that_tell_more(few_theta, few_x, every)
    return None if chosen is None else chosen.to(x)


def _principal(x: Tensor) -> Components | None:
    """Return the principal components of data (n, c), in units of the first's deviation."""
    mean, axes, std = principal_axes(bounded_columns(x))
    if len(std) == 0:
        return None
    axes = axes / std[0]
    return Components(axes.float(), (mean @ axes).float())


def _that_tell_more(theta: Tensor, x: Tensor, every: Components) -> Components | None:
    """Return few components, all of them in place of too many columns, or ``None``."""
    components = every(x)
    too_many = x.shape[1] > MOST_FEATURES
    columns = components if too_many else x
    kept = _few(theta, columns, components, x.shape[1] // 2)
    if kept is None:
        return every if too_many else None
    judges = judges_of(theta)
    of_columns, of_few = (
        -bounded(-information((theta[~judges], c[~judges]), (theta[judges], c[judges])))
        for c in (columns, components[:, kept])
    )
    gain, error = mean_and_error(of_few - of_columns)
    if too_many:
        # Of components the few are the simpler ones.
        return every.only(kept) if gain > -max(_SURER, error) else every
    errors = _ERRORS if len(theta) >= _FEW_ROWS else _ERRORS_OF_FEW
    return every.only(kept) if gain > max(_SURER, errors * error) else None


def judges_of(theta: Tensor) -> Tensor:
    """Return which rows of parameters (n, d), in no order, judge what is fitted to the others."""
    return torch.arange(len(theta)) % _JUDGES == 0


def _few(theta: Tensor, columns: Tensor, components: Tensor, most: int) -> Tensor | None:
    """Return the numbers of the fewest components with which the linear posterior is sharp.

    ``None`` if that is so with none of those to try, of which there are ``most`` at most.
    """
    rank = components.shape[1]
    numbers = sorted({min(num, rank) for num in _NUMBERS if num <= most})
    sharp = [linear_entropy(theta, components[:, :num]).item() for num in numbers]
    sharpest = min(linear_entropy(theta, columns).item(), *sharp, float("inf"))
    for num, entropy in zip(numbers, sharp, strict=True):
        if entropy <= sharpest + _LESS_SHARP:
            return informative(theta, components[:, :num])
    return None
