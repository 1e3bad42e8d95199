r"""What a likelihood, fitted for a few hundred steps, can tell of :math:`\theta` from features.

At held-out rows it is

.. math:: I = \log q(c|\theta) - \log \tfrac1n \sum_j q(c|\theta_j)

with other simulations' :math:`\theta_j` as draws of the prior. Its mean is a lower bound of the
mutual information of :math:`\theta` and the features c, and log n at most.

References:
    Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018), arXiv
    1807.03748, section 2.3: the bound.
"""

import math

import torch

from .likelihood import LikelihoodEnergy
from .likelihood_fit import LikelihoodFit, Rows
from .row_losses import bounded

__all__ = ["information"]

# Draws of the prior.
_DRAWS = 1000
# One shift and one factor for all Gaussians: what few rows can tell.
_FORM = 2


def information(rows: Rows, held_out: Rows) -> float:
    """Return the bound, with rows that are far off bounded, nats; random numbers are torch's.

    Args:
        rows: Parameters (n, d) and features (n, c), at most 500, to fit.
        held_out: Such to judge by, at least one.
    """
    fit = LikelihoodFit(LikelihoodEnergy(*rows, common=_FORM), rows, held_out)
    fit.run()
    network = fit.restore_best().eval()
    theta, features = held_out
    with torch.no_grad():
        own = network(theta.unsqueeze(0), features)
        others = network(rows[0][:_DRAWS].unsqueeze(1), features)
    log_evidence = torch.cat((own, others)).logsumexp(dim=0) - math.log(1 + len(others))
    return -bounded(log_evidence - own[0]).mean().item()
