r"""Joint training of flow and proxy under a weighting, with early stopping on held-out data.

What happens in one step is in :mod:`sbi_jeffreys.training.steps`. Early stopping looks at the
flow's held-out cross-entropy, which is the same quantity from the first epoch to the last; the
Lagrangian is not, since it moves with its multipliers. What held-out data decide is in
:mod:`sbi_jeffreys.training.patience`, how they are looked at in
:mod:`sbi_jeffreys.training.held_out`.

The entropy H in :math:`D_1` and :math:`D_3` is unknown. With linear prices for these two (the
default) it drops out of the problem. Where a price is curved, H is taken to be the lowest held-out
cross-entropy that either model has reached, less a margin, and :math:`D_1` and :math:`D_3` are the
held-out ones: they stay above the margin, so that the data terms never die. The proxy's counts
where the flow's draws cover it: elsewhere the estimate of its Z, and with it the loss, is too low.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..draws import ReverseQueue
from ..duals import settled
from ..likelihood.base import Likelihood
from ..optim.weights import copy_of_weights
from ..utils.row_losses import is_sure
from .batches import Data, LoaderData
from .descent import TrainingDiverged
from .held_out import LossHook, ProxyLooks, flow_losses
from .patience import Patience, ProxyPlateau, pace_of
from .record import dual_entries
from .steps import JointSteps, Settings

__all__ = ["Training"]

# Margin below the best held-out cross-entropy in the entropy estimate, nats; effective sample size,
# a fraction of the draws, from which on the proxy's is believed.
_ENTROPY_MARGIN, _COVERED = 0.1, 0.1
# Factor on the proxy's learning rate when its best weights are put back, and on both when a trial
# has failed.
_DROP, _DROP_BOTH = 0.3, 0.5
# A trial's price is divided by ten again, so often at most, while it leaves the multiplier of D2
# above this share of what it was.
_UNMOVED, _MORE_TENTHS = 0.9, 2


@dataclass
class Training(JointSteps):
    """One joint training: steps, and what held-out data say between epochs.

    Args:
        simple_start: Whether the weights at the start are a model in their own right, the linear
            posterior in closed form, which what is learnt must beat.
        fitted: Likelihoods that were fitted before, on the CPU, for the pool.

    Attributes:
        diverged: Whether the last run did.
        kept_loss: Held-out loss of the weights that it left, nats.
        last_weights: Those at which it stopped, to be resumed from; ``None`` if it diverged.
        running: Whether a run is under way: then the estimator's weights are the last.

    The others are those of :class:`~sbi_jeffreys.training.steps.JointSteps`.
    """

    simple_start: bool = True
    fitted: Sequence[Likelihood] = ()
    epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    first_weights: dict[str, Tensor] = field(default_factory=dict)
    first_loss: float = float("inf")
    entropy: float = float("inf")
    diverged: bool = False
    kept_loss: float = float("inf")
    last_weights: dict[str, Tensor] | None = None
    running: bool = False
    patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        s = self.settings
        pace = pace_of(s.learning_rate, Settings.learning_rate)
        self.patience = Patience(s.stop_after_epochs, trials=self._trials, pace=pace)
        watch = s.proxy_plateau and self.forward_loss is None
        pace = pace_of(s.proxy_learning_rate, Settings.proxy_learning_rate)
        self._looks = ProxyLooks(watch, plateau=ProxyPlateau(pace))

    @property
    def stiffness(self) -> float:
        """Factor on the stiffness of the price of D2: lower after a trial of that."""
        return self.patience.stiffness

    @property
    def _trials(self) -> bool:
        """Whether a lower price can be tried, and held-out data can tell what comes of it."""
        # A linear price of D2 has one slope, as fixed weights have.
        moves = self.estimator.proxy is not None and self._settled(0.0) != self._settled(1.0)
        # Later rounds: the atomic loss draws its atoms, and scatters by as much as trials gain.
        return self.settings.trials and moves and self.forward_loss is None

    def go_on(
        self,
        settings: Settings,
        kernel: Callable[[Tensor], Tensor],
        forward_loss: LossHook | None,
    ) -> None:
        """Take up a training where it stopped; arguments as those of the class."""
        self.settings, self.kernel, self.forward_loss = settings, kernel, forward_loss
        self.from_prior = self.from_prior and forward_loss is None
        self._simulate_from_prior_only()
        self.patience.go_on(settings.stop_after_epochs, trials=self._trials)
        self._looks.watch = settings.proxy_plateau and forward_loss is None

    def resumed(
        self,
        settings: Settings,
        kernel: Callable[[Tensor], Tensor],
        forward_loss: LossHook | None,
    ) -> "Training":
        """Return the training to go on with: this one, or :meth:`anew` where it has diverged.

        Args:
            settings: Hyper-parameters from here on; of the learning rates those of new optimizers.
            kernel: Calibration kernel from here on.
            forward_loss: Forward loss from here on.
        """
        training = self.anew(settings) if self.last_weights is None else self
        training.go_on(settings, kernel, forward_loss)
        return training

    def stopped(self) -> "Training":
        """Return a copy, not of its modules, that can be resumed from where this one is now."""
        other = copy.copy(self)
        if self.running:
            other.running, other.last_weights = False, copy_of_weights(self.estimator)
        return other

    def anew(self, settings: Settings) -> "Training":
        """Return a training from the best weights on, with new optimizers and multipliers."""
        other = replace(self, settings=settings)
        for name in ("best", "start", "steps"):
            setattr(other.patience, name, getattr(self.patience, name))
        other._held_out, other._reverse = self._held_out, self._reverse
        return other

    def validate(self, data: Data | LoaderData) -> dict[str, float]:
        """Measure both models on held-out data."""
        # A recording of the losses would not.
        self.estimator.eval()
        losses, outliers_bounded = self.graphs.held_out(self, partial(self.losses, data), data)
        values = {
            "validation_loss": losses.mean().item(),
            "validation_loss_bounded": outliers_bounded.mean().item(),
        }
        if self.estimator.proxy is not None:
            recorded = partial(self.graphs.held_out, self, data=data)
            self._looks.look(self.estimator, data, self.steps, self.settings.device, recorded)
            values |= self._looks.seen
        return values

    def losses(self, data: Data | LoaderData) -> tuple[Tensor, Tensor]:
        """Return the flow's loss at each row, and the same with outliers bounded, shapes (n,)."""
        s, hook = self.settings, self.forward_loss
        atomic = None if hook is None else (hook, s.training_batch_size)
        return flow_losses(self.estimator, data, s.device, self.kernel, atomic)

    def observe(self, held_out: dict[str, float]) -> dict[str, float]:
        """Update the entropy estimate and D1 and D3 from held-out losses; return them."""
        losses = torch.tensor(
            [held_out["validation_loss"], held_out.get("validation_loss_proxy", float("nan"))],
            dtype=torch.float64,
        )
        if held_out.get("effective_sample_size", 0.0) < _COVERED:
            losses[1] = float("nan")
        finite = losses[losses.isfinite()]
        if len(finite):
            self.entropy = min(self.entropy, finite.min().item() - _ENTROPY_MARGIN)
        self._held_out = losses - self.entropy
        return dict(
            zip(("divergence_forward", "divergence_proxy"), self._held_out.tolist(), strict=True)
        )

    def judge(self, loss: float, outliers_bounded: float) -> bool:
        """Remember the weights if they are the best so far; lose patience if not.

        Where there are prices to try, what was seen before patience begins is forgotten then, but
        for the start (:meth:`~sbi_jeffreys.training.patience.Patience.begins`).

        Args:
            loss: Their held-out loss.
            outliers_bounded: The same with outliers bounded, which decides.

        Returns:
            Whether a trial has failed, and the best weights should come back.
        """
        if self.patience.begins(self.steps):
            self.patience.forget()
            self.best_weights, self.best_loss = self.first_weights, self.first_loss
        if outliers_bounded < self.patience.best:
            self.best_weights, self.best_loss = copy_of_weights(self.estimator), loss
        return self.patience.look(outliers_bounded, self.steps)

    def _lower_enough(self, reverse: float) -> None:
        """Lower the price of a trial that has just begun until it moves the multiplier of D2.

        Where D2 is large, a tenth of the price's curvature may leave it at the same bound.

        Args:
            reverse: D2, nats.
        """
        before = self.patience.before
        assert before is not None
        unmoved = _UNMOVED * self._settled(before * reverse)
        for _ in range(_MORE_TENTHS):
            if self._settled(self.patience.stiffness * reverse) <= unmoved:
                return
            self.patience.lower()

    def _settled(self, reverse: float) -> float:
        """Return the multiplier at which D2 ends that stays at this value."""
        divergences = self._divergences(self._held_out.new_tensor(reverse))
        return settled(self.weighting, self.dual, divergences).multipliers[1].item()

    def _return_proxy(self) -> None:
        """Put the proxy's best weights back, and let it learn more slowly from there."""
        proxy = self.estimator.proxy
        assert proxy is not None
        proxy.load_state_dict(self._looks.plateau.weights)
        self.average.begin_anew(proxy.parameters())
        self.scale_rates(1.0, _DROP)

    def _go_back(self) -> None:
        """Put the best weights back, and learn more slowly from there."""
        self.restore_best()
        self.average.begin_anew()
        # What the abandoned flow has drawn, and what its proxy was seen to do, is gone with it.
        self.queue = ReverseQueue()
        self._looks.plateau.begin_anew(self.steps)
        self.scale_rates(_DROP_BOTH, _DROP_BOTH)

    def restore_best(self) -> None:
        """Put the best weights back."""
        if self.best_weights:
            self.estimator.load_state_dict(self.best_weights)

    def settle(self, held_out: Data | LoaderData) -> float:
        """Put the weights back that held-out data speak for; return their loss.

        These are the best, unless they are within one standard error of those of a simple start
        (:func:`sbi_jeffreys.utils.row_losses.is_sure`): then a few held-out rows cannot tell what
        was learnt from what was memorised, and the simpler model stays.

        References:
            Classification and Regression Trees (Breiman et al., 1984), section 3.4.3
        """
        # The atomic loss of later rounds draws its atoms: its rows say too little.
        if self.forward_loss is not None or not self.simple_start:
            self.restore_best()
            return self.best_loss
        self.estimator.load_state_dict(self.first_weights)
        try:
            first, first_bounded = self.losses(held_out)
        finally:
            # Also on Ctrl-C.
            self.restore_best()
        best, best_bounded = self.losses(held_out)
        # One row far from all others must not decide.
        if not is_sure(first_bounded - best_bounded):
            self.estimator.load_state_dict(self.first_weights)
            return first.mean().item()
        return best.mean().item()

    def forget_rows(self) -> None:
        """Forget the proxy's best losses: the held-out rows are others from here on."""
        self._looks.plateau.best = None

    @property
    def converged(self) -> bool:
        """Whether held-out data have seen no improvement for long enough."""
        return self.patience.exhausted

    def start(self, held_out: Data | LoaderData, advice: str = "") -> None:
        """Look at the held-out data once, so that there is a best before the first epoch ends.

        Args:
            held_out: What to look at.
            advice: What the error says after "before the first epoch".

        Raises:
            ValueError: If their loss is not finite.
        """
        if not self.best_weights:
            measured = self.validate(held_out)
            self.observe(measured)
            loss = measured["validation_loss"]
            # A start without a finite loss at some row is nothing to go back to.
            if math.isfinite(loss):
                self.judge(loss, measured["validation_loss_bounded"])
            if not self.best_weights:
                raise ValueError(f"The held-out loss is not finite before the first epoch{advice}")
            self.first_weights, self.first_loss = self.best_weights, self.best_loss

    def advance(self, data: Data | LoaderData, held_out: Data | LoaderData) -> dict[str, float]:
        """Run one epoch and look at the held-out data; return the epoch's record.

        Raises:
            TrainingDiverged: If the objective or the held-out loss was not finite.
        """
        start, stiffness = time.perf_counter(), self.stiffness
        record = self.run_epoch(data)
        with self.average.in_place():
            measured = self.validate(held_out)
            loss = measured["validation_loss"]
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the held-out loss became {loss}.")
            self.epoch += 1
            self.patience.lead = self._looks.lead
            untried = self.patience.before is None
            failed = self.judge(loss, measured["validation_loss_bounded"])
        if untried and self.patience.before is not None:
            self._lower_enough(record["divergence_reverse"])
        if failed:
            self._go_back()
        elif self._looks.plateau.reached():
            self._return_proxy()
        record |= measured | self.observe(measured) | dual_entries(self.dual, stiffness)
        for name, rate in zip(("flow", "proxy"), self.rates, strict=False):
            record[f"learning_rate_{name}"] = rate
        return record | {"epoch_durations_sec": time.perf_counter() - start}
