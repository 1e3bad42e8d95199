r"""What flow and proxy see of x: columns in standard deviations, positive ones bent if that helps.

Counts, concentrations and populations range over orders of magnitude. In standard deviations nearly
all of them are one and the same number, and the few that are not are cut off as outliers. So
columns of one sign can be seen as

.. math:: y = \mathrm{arsinh}(x / u),

which is a logarithm above the unit :math:`u` and linear below it. Two questions are asked:

- Which columns would be nearer to a Gaussian? As with Box and Cox: those that have a higher
  likelihood as one, the Jacobian included.
- Would that say more of :math:`\theta`? Only if the linear posterior, in closed form and judged by
  leave-one-out, is sharper with these columns bent than without (:func:`features_of`).

Columns of either sign with gross outliers are bent around their median without being asked
(:func:`~sbi_jeffreys.features.scales.from_outliers`): in standard deviations all but these are one
number.

References:
    | An analysis of transformations (Box and Cox, 1964),
      https://doi.org/10.1111/j.2517-6161.1964.tb00553.x
    | Alternative transformations to handle extreme values of the dependent variable (Burbidge,
      Magee and Robb, 1988), https://doi.org/10.1080/01621459.1988.10478575
"""

from typing import Any

import torch
from torch import Tensor, nn

from .linear_posterior import as_logarithms, over_decades
from .regression import MOST_FEATURES, linear_entropy
from .scales import finite_rows, from_outliers, nearer_as_logarithms, shift_and_scale

__all__ = ["Features", "features_of"]

# Nats by which the linear posterior must be sharper. Of a hundred simulations it is known to a few
# tenths.
_SHARPER = 0.5
# Rows that decide.
_ROWS = 2000


class Features(nn.Module):
    """Columns of x with a mean of zero and a standard deviation of one, bent or as they are.

    Args:
        x: Data of the training simulations, shape (n, c). Rows with NaN or inf do not count.
        bent: Which columns to bend, shape (c,); by default none.
        unit: Unit u of those, shape (c,).
        center: What is subtracted from those before they are bent, shape (c,); by default nothing.

    Attributes:
        bent: Which columns are bent, shape (c,).
        unit: Unit u of those, shape (c,); one for the others.
        center: What is subtracted from those, shape (c,); zero for the others.
        mean: What is subtracted from columns, after bending, shape (c,).
        std: What they are divided by, shape (c,).

    Example:
        >>> from sbi_jeffreys.features.scales import nearer_as_logarithms
        >>> x = torch.stack((torch.randn(500).exp(), torch.randn(500)), dim=1)
        >>> features = Features(x, *nearer_as_logarithms(x))
        >>> features.bent.tolist()
        [True, False]
        >>> features(x).mean(dim=0).abs().max() < 1e-5
        tensor(True)
    """

    bent: Tensor
    unit: Tensor
    center: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        x: Tensor,
        bent: Tensor | None = None,
        unit: Tensor | None = None,
        center: Tensor | None = None,
    ) -> None:
        super().__init__()
        one = x.new_ones(x.shape[1])
        self.register_buffer("bent", torch.zeros_like(one).bool() if bent is None else bent)
        self.register_buffer("unit", one if unit is None else unit)
        self.register_buffer("center", torch.zeros_like(one) if center is None else center)
        # As one of Python's values: to ask a GPU would stop it, in every step.
        self._bends = bool(self.bent.any())
        mean, std = shift_and_scale(self._bend(x))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (*, c) of data (*, c)."""
        return (self._bend(x) - self.mean) / self.std

    def _bend(self, x: Tensor) -> Tensor:
        if not self._bends:
            return x
        return torch.where(self.bent, torch.asinh((x - self.center) / self.unit), x)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # What was saved before there were centers has none.
        if prefix + "unit" in state_dict:
            state_dict.setdefault(prefix + "center", torch.zeros_like(self.center))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._bends = bool(self.bent.any())

    def spread_steps(self, features: Tensor, steps: Tensor) -> Tensor:
        """Return features whose data were moved by so many units.

        Args:
            features: Shape (*, c).
            steps: In units u for columns that are bent, in features for the others, shape (*, c).
        """
        if not self._bends:
            return features + steps
        bent = torch.sinh(features * self.std + self.mean) + steps
        bent = (torch.asinh(bent) - self.mean) / self.std
        return torch.where(self.bent, bent, features + steps)


def features_of(theta: Tensor, x: Tensor) -> Features:
    """Return the features that say more of theta.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, c).
    """
    rows = finite_rows(x)
    gross, width, center = from_outliers(rows)
    plain = Features(x, gross, width, center)
    if x.shape[1] > MOST_FEATURES:
        return plain
    logarithms, unit = nearer_as_logarithms(rows[:_ROWS])
    if not bool(logarithms.any()):
        return plain
    unit, center = torch.where(logarithms, unit, width), torch.where(logarithms, 0.0, center)
    bent = Features(x, logarithms | gross, unit, center)
    theta, x = theta[:_ROWS], x[:_ROWS]
    # Logarithms of x go with logarithms of theta: where either asks for these, both have them.
    theta = as_logarithms(theta, over_decades(theta, plain(x)) | over_decades(theta, bent(x)))
    sharper = linear_entropy(theta, plain(x)) - linear_entropy(theta, bent(x))
    return bent if sharper > _SHARPER else plain
