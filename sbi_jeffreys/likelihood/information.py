r"""What a likelihood, fitted for a few hundred steps, can tell of :math:`\theta` from features.

At held-out rows it is

.. math:: I = \log q(c|\theta) - \log \tfrac1n \sum_j q(c|\theta_j)

with other simulations' :math:`\theta_j` as draws of the prior. Its mean is a lower bound of the
mutual information of :math:`\theta` and the features c, and log n at most.

References:
    Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018), arXiv
    1807.03748, section 2.3: the bound.
"""

import torch
from torch import Tensor

from ..divergences import log_mean_exp
from ..utils.row_losses import bounded, mean_and_error
from .base import Likelihood
from .energy import LikelihoodEnergy
from .fit import LikelihoodFit, Rows

__all__ = ["fitted", "information", "information_of", "is_level"]

# Draws of the prior, and rows that they are held against at a time.
_DRAWS, _AT_ONCE = 1000, 100
# One shift and one factor for all Gaussians: what few rows can tell.
_FORM = 2


def information(rows: Rows, held_out: Rows) -> Tensor:
    """Return I of a few Gaussians at held-out rows, nats, shape (m,); random numbers are torch's.

    Args:
        rows: Parameters (n, d) and features (n, c), at most 500, to fit, in no order.
        held_out: Such to judge by (m, d) and (m, c), at least one.
    """
    network = LikelihoodEnergy(*rows, common=_FORM)
    return information_of(fitted(network, rows, held_out), rows, held_out)


def fitted(network: Likelihood, rows: Rows, held_out: Rows) -> Likelihood:
    """Return a likelihood, fitted until held-out rows see no more progress; in place."""
    with torch.enable_grad():
        fit = LikelihoodFit(network, rows, held_out)
        fit.run()
    fit.restore_best()
    return network.eval()


@torch.no_grad()
def information_of(network: Likelihood, rows: Rows, held_out: Rows) -> Tensor:
    """Return I of a likelihood at held-out rows, as :func:`information` does."""
    draws = rows[0][:_DRAWS].unsqueeze(1)
    parts = zip(*(each.split(_AT_ONCE) for each in held_out), strict=True)
    return torch.cat([_at(network, theta, features, draws) for theta, features in parts])


def is_level(first: Tensor, second: Tensor) -> bool:
    """Whether the first I at held-out rows (m,) is not below the second by a standard error."""
    gain, error = mean_and_error(bounded(-second) - bounded(-first))
    return gain > -error


def _at(network: Likelihood, theta: Tensor, features: Tensor, draws: Tensor) -> Tensor:
    own = network(theta.unsqueeze(0), features)
    every = torch.cat((own, network(draws, features)))
    return own[0] - log_mean_exp(every)
