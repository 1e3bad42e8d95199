"""Scales of columns in any unit of measurement.

Strains of gravitational waves are 1e-21, pressures in stars 1e16: their squares leave single
precision. So columns are divided by a power of two first, which rounds nothing, and what counts as
constant is relative to a column's own size.
"""

import torch
from sbi.utils.sbiutils import Standardize
from torch import Tensor

__all__ = [
    "column_scales",
    "cut_outliers",
    "finite_rows",
    "finite_sample",
    "from_outliers",
    "magnitude",
    "nearer_as_logarithms",
    "shift_and_scale",
    "spread",
    "standardizer",
]

# Standard deviation, relative to the largest entry, up to which a column is constant.
_CONSTANT = 1e-12
# Nats a row by which a column must be more likely as a logarithm.
_GAIN = 0.1
# Quantile of what is not zero that is the unit: below are few.
_UNIT = 0.02
# Seed of samples of rows.
_SEED = 0
# Least number of rows that are not zero, and of rows that tell outliers.
_FEWEST = 20
# Standard deviation relative to that of a Gaussian with the same median distance from the median.
_GROSS = 100.0
# The latter, relative to that distance, and rows that tell it.
_OF_MEDIAN, _SOME = 1.4826, 2000
# Standard deviations at which outliers are cut off.
_CUT = 4.0


def magnitude(rows: Tensor) -> Tensor:
    """Return a power of two near the largest entry of each column, one where all are zero.

    Args:
        rows: Shape (n, *event).

    Returns:
        Shape (*event).

    Example:
        >>> magnitude(torch.tensor([[3e-21, 0.0], [-1e-22, 0.0]])).log2().tolist()
        [-69.0, 0.0]
    """
    largest = rows.abs().amax(dim=0)
    unit = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where((unit > 0) & unit.isfinite(), unit, torch.ones_like(unit))


def spread(rows: Tensor) -> Tensor:
    """Return the standard deviation of each column, one where it does not vary.

    What never varies carries no information: its scale is arbitrary.

    Args:
        rows: Shape (n, *event), n at least 2.

    Returns:
        Shape (*event).
    """
    unit = magnitude(rows)
    relative = (rows / unit).std(dim=0)
    return torch.where(relative > _CONSTANT, relative * unit, torch.ones_like(unit))


def finite_rows(x: Tensor) -> Tensor:
    """Return the rows of x (n, *event) without NaN or inf."""
    return x[x.flatten(1).isfinite().all(dim=1)]


def finite_sample(theta: Tensor, x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return rows of theta (n, d) and x (n, c) without NaN or inf, on the CPU, as float32.

    Some of them at random where there are more than ``most``, the same each time: rows may be
    ordered by theta.
    """
    finite = (theta.isfinite().all(dim=1) & x.isfinite().all(dim=1)).nonzero().squeeze(-1)
    sample = torch.randperm(len(finite), generator=torch.Generator().manual_seed(_SEED))[:most]
    rows = finite[sample.to(finite.device)]
    theta, x = (each[rows].detach().float().cpu() for each in (theta, x))
    return theta, x


def shift_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what standardises columns: mean and spread, zero and one of fewer than two rows.

    Args:
        x: Shape (n, *event). Rows with NaN or inf do not count.

    Returns:
        Both of shape (*event).
    """
    rows = finite_rows(x)
    if len(rows) < 2:
        return x.new_zeros(x.shape[1:]), x.new_ones(x.shape[1:])
    mean = rows.mean(dim=0)
    # The sum of finite numbers need not be finite.
    mean = torch.where(mean.isfinite(), mean, rows.mean(dim=0, dtype=torch.float64).to(rows))
    # Rounded, that of one large number may be another: what never varies is to be zero.
    mean = torch.where((rows == rows[0]).all(dim=0), rows[0], mean)
    return mean, spread(rows)


def standardizer(x: Tensor) -> Standardize:
    """Return a module that subtracts each column's mean and divides by its standard deviation.

    As sbi's ``standardizing_net``, which takes standard deviations below 1e-7 for 1e-7.

    Args:
        x: Shape (n, *event). Rows with NaN or inf do not count.
    """
    return Standardize(*shift_and_scale(x))


def from_outliers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return which columns have a standard deviation that is made by gross outliers.

    It is more than a hundred times u, what it would be of a Gaussian with the same median distance
    from the median m. As :math:`\mathrm{arsinh}((x - m) / u)`, data that are no outliers can be
    told from each other.

    Args:
        x: Shape (n, c).

    Returns:
        Which they are, shape (c,), and u and m of these, one and zero for the others, shape (c,).

    References:
        | Alternative transformations to handle extreme values of the dependent variable (Burbidge,
          Magee and Robb, 1988), https://doi.org/10.1080/01621459.1988.10478575
        | Alternatives to the median absolute deviation (Rousseeuw and Croux, 1993), section 1,
          https://doi.org/10.1080/01621459.1993.10476408
    """
    if len(x) < _FEWEST:
        none = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        return none, x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
    # All rows have a say in the standard deviation; for the medians some from all over will do.
    some = x[:: -(-len(x) // _SOME)]
    center = some.median(dim=0).values
    distance = (some - center).abs()
    middle = distance.median(dim=0).values
    # Where more than half of a column is one number, the others tell.
    others = distance.where(distance > 0, torch.nan).nanmedian(dim=0).values.nan_to_num(0.0)
    unit = _OF_MEDIAN * torch.where(middle > 0, middle, others)
    std = spread(x)
    # Quotients by it must not leave single precision.
    gross = (std > _GROSS * unit) & (unit > 1e-30 * std)
    return gross, torch.where(gross, unit, 1.0), torch.where(gross, center, 0.0)


def nearer_as_logarithms(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return which columns are nearer to a Gaussian as :math:`\mathrm{arsinh}(x / u)`.

    These have one sign, and under a Gaussian of that scale, the Jacobian included, a row is 0.1 nat
    more likely than under one of the column as it is.

    Args:
        x: Shape (n, c).

    Returns:
        Which they are, shape (c,), and the units u of these, one for the others, shape (c,).

    References:
        An analysis of transformations (Box and Cox, 1964),
        https://doi.org/10.1111/j.2517-6161.1964.tb00553.x
    """
    bent = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    unit = x.new_ones(x.shape[1])
    if len(x) < _FEWEST:
        return bent, unit
    one_sign = (x >= 0).all(dim=0) | (x <= 0).all(dim=0)
    for i in one_sign.nonzero().flatten().tolist():
        column = x[:, i].abs().double()
        positive = column[column > 0]
        # Of two values one scale is as good as the other.
        if len(positive) < _FEWEST or len(column.unique()) < 3:
            continue
        # Quotients by it must not leave single precision.
        u = positive.quantile(_UNIT).clamp_min(1e-30 * positive.amax())
        y = torch.asinh(column / u)
        log_slope = torch.hypot(column, u).log().mean()
        if column.std().log() - y.std().log() - log_slope > _GAIN:
            bent[i], unit[i] = True, u.to(x)
    return bent, unit


def column_scales(context: Tensor | None, num: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shift and scale (num,) that standardise columns of embedded data.

    Zero and one for columns that somebody has standardised already: by Chebyshev's inequality at
    most a sixteenth of their rows lies beyond four standard deviations.

    Args:
        context: Embedded data, shape (n, num), or None.
        num: Number of features.
        like: Tensor of the type and device wanted.
    """
    shift, scale = like.new_zeros(num), like.new_ones(num)
    if context is None or num == 0:
        return shift, scale
    finite = finite_rows(context).to(like)
    raw = (finite.abs() > _CUT).to(like).mean(dim=0) > 1 / _CUT**2
    mean, std = shift_and_scale(finite)
    return torch.where(raw, mean, shift), torch.where(raw, std, scale)


def cut_outliers(standardized: Tensor) -> Tensor:
    """Return data in standard deviations, cut off at four."""
    return standardized.clamp(-_CUT, _CUT)
