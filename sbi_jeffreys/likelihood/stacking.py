r"""Several likelihoods as one: a mixture whose shares held-out rows choose.

.. math:: f(\theta, c) = \log \sum_m s_m\, \ell_m(c | \theta) + g(c)

The forms that were fitted before the training (:mod:`sbi_jeffreys.likelihood.forms`) err in
different ways, and so does the one that was trained. None is right; a mixture is mostly nearer than
the best of them, and costs no further fit.

References:
    | Linearly combining density estimators via stacking (Smyth and Wolpert, 1999),
      https://doi.org/10.1023/A:1007511322260
    | Using stacking to average Bayesian predictive distributions (Yao et al., 2018),
      https://doi.org/10.1214/17-BA1091
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Likelihood
from .fit import Rows, spread_rows

__all__ = ["Stack", "stacked"]

# Rows that each likelihood is credited with before any is seen: of a hundred rows, few must not
# leave one without a share.
_PRIOR_ROWS = 0.5
# Steps of expectation maximisation: a step gains hundredths of a nat at first, and soon nothing.
_STEPS = 200
# Below this share one of the others is left out: draws wait for it as long as for any, and it is
# worth a hundredth of a nat.
_LEAST = 0.1


class Stack(nn.Module):
    """Likelihoods that stand beside the proxy's own, and the shares of all.

    Args:
        others: The likelihoods, built for the same embedded data as the proxy's own. They belong
            to the stack from here on, and are not trained any more.
        log_shares: Logarithms of the shares, that of the proxy's own first, shape (1 + M,).
    """

    log_shares: Tensor

    def __init__(self, others: Sequence[Likelihood], log_shares: Tensor) -> None:
        super().__init__()
        self.others = nn.ModuleList(others).requires_grad_(False)
        for other in others:
            # To spread data over steps. It would stay where it is when the stack is moved.
            other.__dict__.pop("features", None)
        self.register_buffer("log_shares", log_shares)

    def forward(self, first: Likelihood, theta: Tensor, context: Tensor) -> Tensor:
        """Return the energy of the mixture.

        Args:
            first: The proxy's own likelihood.
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c).

        Returns:
            Nats, shape (S, B).
        """
        said = [member.log_mixture(theta, context) for member in (first, *self.others)]
        shares = self.log_shares.view(-1, 1, 1)
        return (torch.stack(said) + shares).logsumexp(dim=0) + first.shift(context)


@torch.no_grad()
def stacked(
    first: Likelihood, others: Sequence[Likelihood], rows: Rows, weights: Tensor
) -> Stack | None:
    """Return the stack that rows are likeliest under; ``None`` if the first is as good alone.

    Args:
        first: The proxy's own likelihood.
        others: Others, of the same embedded data.
        rows: Parameters and embedded data, none of which a likelihood was fitted to.
        weights: Weights of the rows, shape (n,).
    """
    members = (first, *others)
    # Data in steps are spread once for all; each copy of a row counts for its part of it.
    spread = next((spread_rows(each, *rows) for each in members if each.spreads_steps), rows)
    found = [each.log_likelihood(*(spread if each.spreads_steps else rows)) for each in members]
    copies = len(spread[0]) // len(rows[0])
    weights = weights.cpu().repeat(copies) / copies
    log_likelihoods = torch.stack([each.repeat(len(weights) // len(each)) for each in found]).cpu()
    finite = log_likelihoods.isfinite().all(dim=1).tolist()
    if not finite[0]:
        return None
    shares = _shares(log_likelihoods[finite], weights)
    usable = [other for other, ok in zip(others, finite[1:], strict=True) if ok]
    kept = (shares[1:] >= _LEAST).tolist()
    if not any(kept):
        return None
    log_shares = shares[[True, *kept]].log().log_softmax(dim=0)
    chosen = [other for other, keep in zip(usable, kept, strict=True) if keep]
    return Stack(chosen, log_shares.to(rows[0]))


def _shares(log_likelihoods: Tensor, weights: Tensor) -> Tensor:
    """Return the shares (M,) under which rows are likeliest, of log likelihoods (M, n)."""
    shares = torch.full_like(log_likelihoods[:, 0], 1 / len(log_likelihoods))
    for _ in range(_STEPS):
        belongs = (log_likelihoods + shares.log().unsqueeze(-1)).softmax(dim=0)
        shares = belongs @ weights + _PRIOR_ROWS
        shares = shares / shares.sum()
    return shares
