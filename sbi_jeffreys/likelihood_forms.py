r"""Which form the default proxy's likelihood takes: each is fitted, and held-out data choose.

How many numbers tell what :math:`\theta` does to the Gaussians of a
:class:`~sbi_jeffreys.likelihood.LikelihoodEnergy` decides how many simulations it needs. Where
noise is added to a mean, Gaussians that move as one are better by nats with few; where it is not,
they never get there. A step of a likelihood alone takes a tenth of a joint one, so all forms are
fitted for a few hundred.

A form whose Gaussians move as one also starts the joint training where its fit has ended. The one
whose Gaussians each move on their own starts it anew: of few simulations it is sure of too much,
and a flow that meets it at once follows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .averaging import RunningMean
from .estimator import ROWS_FOR_SCALE, JeffreysEstimator
from .held_out import bounded, likelihood_losses, surest
from .likelihood import LikelihoodEnergy
from .muon import adam
from .patience import copy_of_weights
from .proxy import proxy_nn
from .recording import Repeated

__all__ = ["ROWS_TO_FIT", "ROWS_TO_JUDGE", "fittest", "take_fittest_form"]

ROWS_TO_FIT, ROWS_TO_JUDGE = 5000, 2000
"""Rows to fit and to judge by, at most."""
# Steps of a fit at most, and between two looks at held-out rows; looks without progress, in nats,
# that end it.
_STEPS, _LOOK, _PATIENCE, _PROGRESS = 300, 20, 4, 0.01
_BATCH, _RATE, _WEIGHT_DECAY, _MAX_NORM = 200, 5e-3, 0.1, 5.0
# Steps before one is recorded.
_RECORDED = 5

Rows = tuple[Tensor, Tensor]
"""Parameters (n, d) and embedded data (n, c)."""


def take_fittest_form(estimator: JeffreysEstimator, rows: Rows, held_out: Rows) -> None:
    """Give the proxy of an estimator, on the CPU, the form that held-out rows prefer.

    Args:
        estimator: Its proxy is a likelihood that has not been trained.
        rows: Parameters (n, d) and data (n, *event) to fit.
        held_out: Such to judge by.
    """
    proxy = estimator.proxy
    assert proxy is not None
    theta, x = (each[:ROWS_FOR_SCALE] for each in rows)

    def build(common: int) -> LikelihoodEnergy:
        network = estimator.new_network(theta, x, proxy.base, proxy_nn(common=common))
        assert isinstance(network, LikelihoodEnergy)
        return network

    estimator.eval()
    with torch.no_grad():
        embedded, judges = [(t, estimator.embed(x)) for t, x in (rows, held_out)]
    proxy.network = fittest(build, embedded, judges)


def fittest(
    build: Callable[[int], LikelihoodEnergy], rows: Rows, held_out: Rows
) -> LikelihoodEnergy:
    """Return the likelihood of the form that held-out rows are surest of, ready to be trained.

    Surest that it is better than the first, whose Gaussians each move on their own: with ten rows
    another may seem so that is not, and it would start the joint training.

    Args:
        build: Builds a likelihood of a form.
        rows: What to fit.
        held_out: What to judge by.
    """
    first = build(0)
    # Without correlations the last two forms are one.
    forms = range(1, 4 if first.sizes[2] else 3)
    fits = [_Fit(network, rows, held_out) for network in (first, *map(build, forms))]
    for fit in fits:
        fit.run()
    # Starts of several forms differ by chance: one that has learnt nothing is none to choose.
    fits = [fit for fit in fits if fit.network is first or fit.has_learnt]
    return fits[surest(torch.stack([fit.losses for fit in fits]))].network_to_train()


class _Fit:
    """A likelihood that is being fitted, its best weights, and their losses on held-out rows."""

    def __init__(self, network: LikelihoodEnergy, rows: Rows, held_out: Rows) -> None:
        self.network, self._rows, self._held_out = network, rows, held_out
        # What moves Z alone the likelihood does not know.
        gauge = set(network.gauge.parameters())
        self._parameters = [p for p in network.parameters() if p not in gauge]
        self._optimizer = adam(self._parameters, _RATE, _WEIGHT_DECAY)
        self._average = RunningMean(self._parameters, newest=10)
        self._step = Repeated(self._descend, _RECORDED)
        self._first = self._best = copy_of_weights(network)
        self.losses = self._look()

    @property
    def has_learnt(self) -> bool:
        """Whether held-out rows prefer what was fitted to the start."""
        return self._best is not self._first

    def run(self) -> None:
        """Take steps until held-out rows see no more progress."""
        mark, idle = _mean(self.losses), 0
        for step in range(1, _STEPS + 1):
            self._step()
            self._average.update(step)
            if step % _LOOK:
                continue
            with self._average.in_place():
                losses = self._look()
                # False for what is no number.
                if _mean(losses) < _mean(self.losses):
                    self.losses, self._best = losses, copy_of_weights(self.network)
            idle += 1
            if _mean(self.losses) < mark - _PROGRESS:
                mark, idle = _mean(self.losses), 0
            if idle == _PATIENCE:
                return

    def network_to_train(self) -> LikelihoodEnergy:
        """Return the network with the weights that a joint training is to begin with."""
        network = self.network
        network.load_state_dict(self._best if network.as_one else self._first)
        network.zero_grad(set_to_none=True)
        return network

    @torch.no_grad()
    def _look(self) -> Tensor:
        losses = likelihood_losses(self.network, *self._held_out)
        # Of data in steps there are several copies of each row.
        return losses.view(-1, len(self._held_out[0])).mean(dim=0)

    def _descend(self) -> tuple[Tensor, ...]:
        theta, context = self._rows
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


def _mean(losses: Tensor) -> float:
    return bounded(losses).mean().item()
