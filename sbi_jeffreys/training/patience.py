r"""When to go on, when to try a lower price, when to go back, when to stop.

Flow and proxy learn at different paces, and how much they should agree differs from task to task.
Held-out data decide both:

- The proxy learns from few simulations in a hundred steps what the flow needs hundreds to follow,
  and overfits from there. So its best weights are kept, and put back at a lower learning rate when
  it stops improving (:class:`ProxyPlateau`).
- Where held-out data see no more progress, the price of :math:`D_2` is lowered, for a trial: some
  flows do better with less of a proxy that is a little wrong, others memorise the data within a few
  epochs. If nothing comes of it, the run goes back to its best weights and the old price, and on at
  a lower learning rate: to its end or, where it gains by that, to another trial. A proxy that is
  far ahead of the flow is one to follow for longer before a price is lowered
  (:class:`Patience`).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..optim.weights import copy_of_weights

__all__ = ["MOST_OF_A_ROW", "Patience", "ProxyPlateau", "pace_of"]

# Progress in nats within the patience that postpones a trial, and that still counts after one has
# failed. Less is kept, but a run that only creeps has arrived.
_PROGRESS, _CREEPING = 0.02, 0.01
# By how much, in nats, a loss above that before ends a trial at once.
_WORSE = 0.1
# Factor on the stiffness of the price of D2 in a trial.
_TRIAL = 0.1
# Shares of the patience without progress at which a trial begins, and ends; the rest is for the run
# after a failed one.
_BEGIN, _END = 0.25, 0.75
# Gain after a failed trial, in nats, that makes another worth while.
_FORGIVEN = 0.05
# Steps that count as one epoch of patience, at least and, where there are trials, at most. From one
# batch an epoch, running means and multipliers need many epochs to move at all; with many, they
# have long settled at a price before ten epochs have passed.
_FEWEST, _MOST = 4, 20
# Steps before patience begins: with a proxy, a flow hardly moves in fewer.
_FIRST_STEPS = 200
# Nats by which a proxy is far ahead.
_FAR_AHEAD = 0.4
# Least pace: however low a rate, patience lasts ten times as long as at the default at most.
_SLOWEST = 0.1
# Steps, and looks, without progress of the proxy until its best weights are put back.
_PLATEAU, _LOOKS = 96, 4
MOST_OF_A_ROW = 3.0
"""Nats by which one held-out row can speak for or against a model. Far from all other x it may lose
thousands while it gains everywhere else: a mean would listen to that x alone."""


def pace_of(rate: float, default: float) -> float:
    """Return how far a step at a learning rate goes, 1 at the default and above."""
    return max(_SLOWEST, min(1.0, rate / default))


@dataclass
class Patience:
    """Early stopping, with trials of a lower price of D2 before it.

    Args:
        limit: Epochs without progress after which a run ends. Where there are trials, one begins
            after a quarter of them and has a half; the last quarter begins when it has failed.
            While the proxy is far ahead of the flow one begins after all of them.
        trials: Whether there is a price to lower.
        pace: How far a step goes, 1 at the default learning rate; where there are trials, patience
            lasts for as many more steps as these are shorter.

    Attributes:
        stiffness: Factor on the stiffness of the price of D2, 1 at first.
        best: Lowest loss so far; where there are trials, of those that count, and of the start.
        start: Loss of the start.
        mark: Loss from which progress is counted; where there are trials, not that of the start.
        stall: Epochs without progress, counted by their steps.
        failed: Best loss when the last trial failed and was taken back; ``None`` if none has, or
            if the loss has improved by 0.05 nats since.
        steps: Training steps at the last look.
        before: Stiffness before the trial that is under way, ``None`` without one.
        lead: Nats by which held-out rows were likelier under the proxy than under the flow when
            they were last asked; set from outside.
    """

    limit: int
    trials: bool = True
    pace: float = 1.0
    stiffness: float = 1.0
    best: float = float("inf")
    start: float = float("inf")
    mark: float = float("inf")
    stall: float = 0.0
    failed: float | None = None
    steps: int = 0
    before: float | None = None
    lead: float = 0.0

    def begins(self, steps: int) -> bool:
        """Whether the look after so many steps in all is the first that counts, but for the start.

        Of those before, one in which a hundred rows happened to like what had hardly been trained
        would have to be beaten by all that follow.
        """
        return self.trials and self.pace * self.steps < _FIRST_STEPS <= self.pace * steps

    def forget(self) -> None:
        """Forget all looks but the start's."""
        self.best, self.mark = self.start, float("inf")

    def look(self, loss: float, steps: int) -> bool:
        """Take note of a held-out loss after so many steps in all.

        Returns:
            Whether a trial has failed: the caller puts the best weights back.
        """
        taken, self.steps = steps - self.steps, steps
        self.best = min(self.best, loss)
        if not steps:
            self.start = loss
        if self.trials and not steps:
            # A start may be better than what comes of it in hundreds of steps that all go forward.
            return False
        trial_is_next = self.trials and self.failed is None and not self._follows
        progress = _PROGRESS if trial_is_next else _CREEPING
        if loss < self.mark - progress:
            # Progress ends a trial: the lower price stays.
            self.mark, self.stall, self.before = loss, 0.0, None
            if self.failed is not None and loss < self.failed - _FORGIVEN:
                self.failed = None
            return False
        self.stall += self._epochs(taken)
        return self.trials and self._fails(loss)

    def _epochs(self, taken: int) -> float:
        """Return for how many epochs of patience the last steps count."""
        if not self.trials:
            return min(1.0, taken / _FEWEST)
        beyond = self.pace * self.steps - _FIRST_STEPS
        if beyond < 0:
            return 0.0
        # Of an epoch in which patience begins, only the steps from there on.
        many = min(self.pace * taken, beyond) / _MOST
        return max(self.pace * min(1.0, taken / _FEWEST), many)

    def _fails(self, loss: float) -> bool:
        """Begin a trial if it is time to; return whether one has failed, and take it back."""
        begin = (1.0 if self._follows else _BEGIN) * self.limit
        if self.before is None:
            if self.failed is None and self.stall >= begin:
                self.before = self.stiffness
                self.lower()
                # The trial has its share, however far a long epoch went beyond the first.
                self.stall = min(self.stall, _BEGIN * self.limit + 1)
            return False
        if self.stall < _END * self.limit and loss <= self.mark + _WORSE:
            return False
        self.stiffness, self.before = self.before, None
        self.mark = self.failed = self.best
        self.stall = 0.0
        return True

    @property
    def _follows(self) -> bool:
        """Whether the proxy is far ahead, and the flow gains by agreeing with it."""
        return self.lead > _FAR_AHEAD

    def lower(self) -> None:
        """Lower the price to a tenth."""
        self.stiffness *= _TRIAL

    def go_on(self, limit: int, *, trials: bool) -> None:
        """Take up a run where it stopped; one that had come to its end begins to count anew."""
        if self.exhausted:
            self.stall, self.failed = 0.0, None
        self.limit, self.trials = limit, trials

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        if self.trials:
            return self.failed is not None and self.stall >= (1 - _END) * self.limit
        return self.stall >= self.limit


@dataclass
class ProxyPlateau:
    """The best weights of a proxy, put back at a lower learning rate when it stops improving.

    ``pace`` is how far a step goes, 1 at the default learning rate.
    """

    pace: float = 1.0
    best: Tensor | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    looks: int = 0
    since: int = 0
    steps: int = 0

    def look(self, losses: Tensor, proxy: nn.Module, steps: int) -> None:
        """Compare the proxy, after so many steps, with the best so far.

        Args:
            losses: Its losses on held-out rows, shape (n,). As long as there are as many they are
                taken to be the same rows; with others, comparing begins anew.
            proxy: The proxy.
            steps: Training steps so far.
        """
        self.steps = steps
        # NaN is as bad as a loss can be.
        losses = losses.nan_to_num(nan=torch.finfo(losses.dtype).max)
        best = self.best
        if (
            best is None
            or len(losses) != len(best)
            or (losses - best).clamp(-MOST_OF_A_ROW, MOST_OF_A_ROW).mean() < 0
        ):
            self.best, self.weights = losses, copy_of_weights(proxy)
            self.begin_anew(steps)
        else:
            self.looks += 1

    def reached(self) -> bool:
        """Whether the proxy has stopped improving; if so, counting begins anew."""
        looks, steps = self.pace * self.looks, self.pace * (self.steps - self.since)
        enough = looks >= _LOOKS and steps >= _PLATEAU
        if enough and self.weights:
            self.begin_anew(self.steps)
            return True
        return False

    def begin_anew(self, steps: int) -> None:
        """Count looks and steps from here."""
        self.looks, self.since = 0, steps
