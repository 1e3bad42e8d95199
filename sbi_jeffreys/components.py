r"""Principal components of x in place of its columns, where few of them tell as much.

A series or an image has dozens of columns, or thousands. Parameters move these together, along a
few directions; noise moves each by itself, and networks that see all of them learn it. So the
columns' first ten, twenty or forty principal components are tried. They take the place of the
columns if

- the linear posterior, in closed form and judged by leave-one-out, is hardly less sharp with them;
- and a likelihood that is fitted to them tells more of :math:`\theta` at held-out rows than one of
  the columns (:mod:`sbi_jeffreys.information`). Draws of one distribution, or a stationary series,
  say what their spread is in all columns and in no component.

Of the components, those that say nothing of :math:`\theta` are left out as columns are
(:mod:`sbi_jeffreys.screening`). They keep the ratios of their standard deviations: what noise is
left among them stays small.

More than 500 columns are too many for what starts in closed form: there the choice is between few
components and the first 500.

References:
    Analysis of a complex of statistical variables into principal components (Hotelling, 1933),
    https://doi.org/10.1037/h0071325
"""

import torch
from torch import Tensor, nn

from .information import information
from .linear import MOST_FEATURES, linear_entropy
from .principal import bounded_columns, principal_axes
from .screening import informative

__all__ = ["Components", "components_of"]

# Columns from which on it is worth while; numbers of components to try, of half as many at most.
_FEWEST, _NUMBERS = 20, (10, 20, 40)
# Nats by which the linear posterior may be less sharp, and by which held-out rows must be surer.
_LESS_SHARP, _SURER = 0.1, 0.2
# Rows that decide, of which every fifth judges.
_ROWS, _JUDGES = 5000, 5
# So few rows tell nothing.
_FEWEST_ROWS = 20


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
        self.register_buffer("directions", directions)
        self.register_buffer("offset", offset)

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
    if num == 0 or (num is None and x.shape[1] < _FEWEST):
        return None
    finite = (theta.isfinite().all(dim=1) & x.isfinite().all(dim=1)).nonzero().squeeze(-1)
    # From all over: they may be ordered by theta.
    finite = finite[:: max(1, -(-len(finite) // _ROWS))]
    if num is None and len(finite) < _FEWEST_ROWS:
        return None
    rows = theta[finite].detach().float().cpu(), x[finite].detach().float().cpu()
    every = _principal(bounded_columns(rows[1]))
    most = len(every.offset)
    if num is not None and num > most:
        raise ValueError(
            f"components={num}, but {len(finite)} simulations of {x.shape[1]} columns have {most} "
            "principal components: ask for fewer."
        )
    chosen = every.only(torch.arange(num)) if num else _that_tell_more(*rows, every)
    return None if chosen is None else chosen.to(x.device)


def _principal(x: Tensor) -> Components:
    """Return the principal components of data (n, c), in units of the first's deviation."""
    mean, axes, std = principal_axes(x)
    axes = axes / std[0]
    return Components(axes.float(), (mean @ axes).float())


def _that_tell_more(theta: Tensor, x: Tensor, every: Components) -> Components | None:
    """Return few components, all of them in place of too many columns, or ``None``."""
    all_of_them = every if x.shape[1] > MOST_FEATURES else None
    columns = x if all_of_them is None else every(x)
    few = _few(theta, x, columns, every)
    if few is None:
        return all_of_them
    judges = torch.arange(len(theta)) % _JUDGES == 0
    told = [
        information((theta[~judges], c[~judges]), (theta[judges], c[judges]))
        for c in (columns, few(x))
    ]
    return few if told[1] > told[0] + _SURER else all_of_them


def _few(theta: Tensor, x: Tensor, columns: Tensor, every: Components) -> Components | None:
    """Return the fewest components with which the linear posterior is sharp, if there are such."""
    numbers = [num for num in _NUMBERS if 2 * num <= x.shape[1] and num < len(every.offset)]
    components = every(x)
    sharp = [linear_entropy(theta, components[:, :num]).item() for num in numbers]
    sharpest = min(linear_entropy(theta, columns).item(), *sharp, float("inf"))
    for num, entropy in zip(numbers, sharp, strict=True):
        if entropy <= sharpest + _LESS_SHARP:
            return every.only(informative(theta, components[:, :num]))
    return None
