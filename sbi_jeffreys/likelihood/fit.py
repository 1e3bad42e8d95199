"""A likelihood that is fitted by itself, for a few hundred steps: a tenth of a joint step each."""

import torch
from torch import Tensor

from ..optim.adam import Adam
from ..optim.weights import RunningMean, copy_of_weights
from ..replay.cpu import Repeated
from ..utils.row_losses import bounded
from .base import Likelihood

__all__ = ["LikelihoodFit", "Rows", "likelihood_losses", "spread_rows"]

# Steps of a fit at most, and between two looks at held-out rows; looks without progress, in nats,
# that end it.
_STEPS, _LOOK, _PATIENCE, _PROGRESS = 300, 20, 4, 0.01
_BATCH, _RATE, _WEIGHT_DECAY, _MAX_NORM = 200, 5e-3, 0.1, 5.0
# Data in steps are spread over them at random, so many times.
_COPIES = 8
# Steps before one is recorded.
_RECORDED = 5

Rows = tuple[Tensor, Tensor]
"""Parameters (n, d) and embedded data (n, c)."""


class LikelihoodFit:
    """A likelihood that is being fitted, its best weights, and their losses on held-out rows.

    Args:
        network: The likelihood, changed in place.
        rows: What to fit.
        held_out: What ends the fit.

    Attributes:
        losses: Those of the best weights on held-out rows, nats, shape (m,).
    """

    def __init__(self, network: Likelihood, rows: Rows, held_out: Rows) -> None:
        self.network, self.rows, self.held_out = network, rows, held_out
        # The gauge g(x) is no part of the likelihood.
        gauge = set(network.gauge.parameters())
        self._parameters = [p for p in network.parameters() if p not in gauge]
        self._optimizer = Adam(self._parameters, _RATE, _WEIGHT_DECAY)
        self._average = RunningMean(self._parameters, newest=10)
        self._step = Repeated(self._descend, _RECORDED)
        self._first = self._best = copy_of_weights(network)
        self.losses = self._look()

    @property
    def has_learnt(self) -> bool:
        """Whether held-out rows prefer what was fitted to the start."""
        return self._best is not self._first

    def run(self) -> None:
        """Take steps until held-out rows see no more progress; keeps the best weights aside."""
        mark, idle = self._mean(self.losses), 0
        for step in range(1, _STEPS + 1):
            self._step()
            self._average.update(step)
            if step % _LOOK:
                continue
            with self._average.in_place():
                losses = self._look()
                # False for NaN.
                if self._mean(losses) < self._mean(self.losses):
                    self.losses, self._best = losses, copy_of_weights(self.network)
            idle += 1
            if self._mean(self.losses) < mark - _PROGRESS:
                mark, idle = self._mean(self.losses), 0
            if idle == _PATIENCE:
                return

    def restore_best(self) -> Likelihood:
        """Put the best weights back; return the network."""
        self.network.load_state_dict(self._best)
        return self.network

    def network_to_train(self) -> Likelihood:
        """Return the network with the weights that a joint training is to begin with."""
        network = self.network
        network.load_state_dict(self._best if network.as_one else self._first)
        network.zero_grad(set_to_none=True)
        return network

    @torch.no_grad()
    def _look(self) -> Tensor:
        losses = likelihood_losses(self.network, *self.held_out)
        # Of data in steps there are several copies of each row.
        return losses.view(-1, len(self.held_out[0])).mean(dim=0)

    def _mean(self, losses: Tensor) -> float:
        # Rare levels have a loss far above that of all others, which counts.
        return (bounded(losses) if self.network.has_tails else losses).mean().item()

    def _descend(self) -> tuple[Tensor, ...]:
        theta, context = self.rows
        if len(theta) > _BATCH:
            some = torch.randint(len(theta), (_BATCH,))
            theta, context = theta[some], context[some]
        self._optimizer.zero_grad()
        context = self.network.dequantize(context)
        loss = -self.network.log_likelihood(theta, context).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_NORM)
        self._optimizer.step()
        return (loss.detach(),)


def likelihood_losses(network: Likelihood, theta: Tensor, context: Tensor) -> Tensor:
    """Return what tells a better likelihood from a worse one, without draws, nats.

    Args:
        network: The likelihood.
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c).

    Returns:
        Its losses, shape (n,), or several times as many where data in steps are spread at random.
    """
    return -network.log_likelihood(*spread_rows(network, theta, context))


def spread_rows(network: Likelihood, theta: Tensor, context: Tensor) -> Rows:
    """Return rows as they are, or several times with data in steps spread over them at random."""
    if not network.spreads_steps:
        return theta, context
    return theta.repeat(_COPIES, 1), network.dequantize(context.repeat(_COPIES, 1))
