r"""Joint training of flow and proxy under a weighting, with early stopping on held-out data.

Every step descends :math:`\lambda_1 D_1 + \lambda_2 D_2 + \lambda_3 D_3` in both models and then
lets the weighting move the multipliers. After the first steps, every other one does so in the flow
alone, as far as that can be had cheaply: what costs is to sample the flow and to train the proxy,
which learns faster than the flow. Early stopping looks at the flow's held-out cross-entropy,
which is the same quantity from the first epoch to the last; the Lagrangian is not, since it moves
with its multipliers. What held-out data decide is in :mod:`sbi_jeffreys.patience`,
how they are looked at in :mod:`sbi_jeffreys.held_out`.

What is looked at, and kept, is a running mean of the weights over the last steps (Polyak
averaging), at the start over fewer: at a constant learning rate the weights themselves
wander about, and a held-out curve that does so too stops a run too early.

The entropy H in :math:`D_1` and :math:`D_3` is unknown. With linear prices for these two (the
default) it drops out of the problem. Where a price is curved, H is taken to be the lowest held-out
cross-entropy that either model has reached, less a margin, and :math:`D_1` and :math:`D_3` are the
held-out ones: they stay above the margin, so that the data terms never die.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .averaging import RunningMean
from .batches import Data, LoaderData
from .descent import TrainingDiverged, descend, flow_optimizer, proxy_optimizer
from .draws import Draws, ReverseQueue, negatives
from .duals import DualState, FixedWeights, Weighting, settled
from .estimator import JeffreysEstimator
from .held_out import LossHook, ProxyLooks, flow_losses
from .likelihood import LikelihoodEnergy
from .objective import LIMITS, BatchTerms, Limits, batch_terms, flow_terms
from .patience import Patience, ProxyPlateau, copy_of_weights, pace_of
from .record import dual_entries

__all__ = ["Settings", "Training"]

# Margin below the best held-out cross-entropy in the entropy estimate, nats.
_ENTROPY_MARGIN = 0.1
# Factor on the proxy's learning rate when its best weights are put back, and on both when a trial
# has failed.
_DROP, _DROP_BOTH = 0.3, 0.5
# A price that leaves the multiplier of D2 above this share is lowered further, to a tenth, so often
# at most.
_UNMOVED, _MORE_TENTHS = 0.9, 2
# How much the newest weights count in the running mean at first. Where a flow has a proxy to
# follow it moves fast, and the mean looks back over a tenth of the steps; without one, which soon
# overfits, a longer memory is better.
_NEWEST = 10
# Steps at first that all evaluate all terms. By then a run on few simulations has mostly ended; one
# on many goes on because the flow learns more slowly than the proxy.
_WHOLE = 1000


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of the training loop; those of sbi have sbi's meaning.

    ``limits`` bound how hard D2 pulls. ``proxy_plateau`` puts the proxy's best weights back when it
    stops to improve; ``trials`` is whether a lower price of D2 is tried before a run ends
    (:mod:`sbi_jeffreys.patience`). ``muon`` trains the flow's matrices by
    :class:`~sbi_jeffreys.muon.Muon`; maximum likelihood, which has no proxy to follow, overfits
    sooner with it and stays with Adam, whose decoupled ``weight_decay`` is there to compare with.
    """

    training_batch_size: int = 200
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    proxy_learning_rate: float = 5e-3
    proxy_weight_decay: float = 0.1
    limits: Limits = LIMITS
    proxy_plateau: bool = True
    trials: bool = True
    muon: bool = True
    stop_after_epochs: int = 20
    clip_max_norm: float | None = 5.0
    device: str = "cpu"


@dataclass
class Training:
    """One joint training: everything that must survive between epochs, and to resume.

    Args:
        estimator: Flow and proxy.
        weighting: Source of the weights of the divergences.
        draws: Numbers of samples.
        settings: Hyper-parameters.
        kernel: Calibration kernel, a function of x.
        forward_loss: Replaces the forward loss, for later rounds.
        from_prior: Whether theta was drawn from the prior; of the rest of the prior a proxy
            knows nothing, and must not simulate there.
        simple_start: Whether the weights at the start are a model in their own right, the linear
            posterior in closed form, which what is learnt must beat.
    """

    estimator: JeffreysEstimator
    weighting: Weighting
    draws: Draws
    settings: Settings
    kernel: Callable[[Tensor], Tensor]
    forward_loss: LossHook | None = None
    from_prior: bool = True
    simple_start: bool = True
    epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    first_weights: dict[str, Tensor] = field(default_factory=dict)
    entropy: float = float("inf")
    steps: int = 0
    patience: Patience = field(init=False)
    dual: DualState = field(init=False)
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        if not self.from_prior:
            self.draws = replace(self.draws, simulated=0.0)
        self.dual = self.weighting.init()
        self._held_out = torch.zeros(2, dtype=torch.float64)
        # D2 as last estimated, nats.
        self._reverse = torch.zeros((), dtype=torch.float64)
        self._queue = ReverseQueue()
        s = self.settings
        proxy = self.estimator.proxy
        self.average = RunningMean(self.estimator.parameters(), 1 if proxy is None else _NEWEST)
        pace = pace_of(s.learning_rate, Settings.learning_rate)
        self.patience = Patience(s.stop_after_epochs, trials=self._trials, pace=pace)
        watch = s.proxy_plateau and self.forward_loss is None
        pace = pace_of(s.proxy_learning_rate, Settings.proxy_learning_rate)
        self._looks = ProxyLooks(watch, plateau=ProxyPlateau(pace))
        muon = s.muon and proxy is not None
        flow = flow_optimizer(self.estimator, s.learning_rate, s.weight_decay, muon=muon)
        self.optimizers = [flow]
        if proxy is not None:
            self.optimizers.append(
                proxy_optimizer(proxy.network, s.proxy_learning_rate, s.proxy_weight_decay)
            )

    @property
    def _trials(self) -> bool:
        """Whether a lower price can be tried, and held-out data can tell what comes of it."""
        moves = self.estimator.proxy is not None and not isinstance(self.weighting, FixedWeights)
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
        self.patience.go_on(settings.stop_after_epochs, trials=self._trials)
        self._looks.watch = settings.proxy_plateau and forward_loss is None

    def anew(self, settings: Settings) -> "Training":
        """Return a training from the best weights on, with new optimizers and multipliers."""
        other = replace(self, settings=settings)
        other.patience.best = self.patience.best
        return other

    @property
    def rates(self) -> list[float]:
        """Present learning rates, of the flow and, where there is one, of the proxy."""
        return [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def run_epoch(self, data: Data | LoaderData) -> dict[str, float]:
        """Take one pass over the data; return means over its batches.

        Raises:
            TrainingDiverged: If the objective was not finite.
        """
        self.estimator.train()
        s = self.settings
        total = torch.zeros(2, dtype=torch.float64)
        seen = 0
        for theta, x, masks in data.batches(s.training_batch_size, s.device, shuffle=True):
            terms = self.step(theta, x, masks)
            total += len(theta) * terms
            seen += len(theta)
        forward, reverse = (total / seen).tolist()
        return {"training_loss": forward, "divergence_reverse": reverse}

    def step(self, theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
        """Descend in the models, ascend in the multipliers; return (forward, reverse).

        Raises:
            TrainingDiverged: If the objective or its gradient was not finite.
        """
        whole = self._evaluates_all()
        terms = self._terms(theta, x, masks, whole=whole)
        weights = self.dual.multipliers.tolist()
        loss = weights[0] * terms.forward
        if self.estimator.proxy is not None:
            loss = loss + weights[1] * terms.reverse + weights[2] * terms.proxy
            loss = loss + self.draws.gauge * terms.gauge
        descend(loss, self.optimizers, self.settings.clip_max_norm)
        self.steps += 1
        self.average.update(self.steps)
        if whole:
            self._reverse = terms.reverse_estimate.to("cpu", torch.float64)
        if self.estimator.proxy is not None:
            # A price with its curvature times s moves as the price itself does on s D2.
            reverse = self.patience.stiffness * self._reverse
            self.dual = self.weighting.step(self.dual, self._divergences(reverse))
        return torch.stack((terms.forward.detach().to("cpu", torch.float64), self._reverse))

    def _evaluates_all(self) -> bool:
        """Return whether the next step evaluates all terms, or those of the flow alone."""
        proxy = self.estimator.proxy
        if proxy is None:
            return False
        # Without pairs of the proxy's own, the data alone would have every other step.
        pairs = self.draws.simulated > 0 and isinstance(proxy.network, LikelihoodEnergy)
        first = self.steps < _WHOLE or self.forward_loss is not None
        return first or not pairs or self.steps % self.draws.every == 0

    def _terms(self, theta: Tensor, x: Tensor, masks: Tensor, *, whole: bool) -> BatchTerms:
        hook, weights = self.forward_loss, self.kernel(x)
        loss = None if hook is None else lambda t, y: hook(t, y, masks)
        if not whole:
            return flow_terms(self.estimator, theta, x, weights, self.draws, forward_loss=loss)
        return batch_terms(
            self.estimator,
            theta,
            x,
            weights,
            self.draws,
            base_draws=negatives(self.estimator, theta, self.draws.base, from_base=hook is None),
            queue=self._queue,
            forward_loss=loss,
            limits=self.settings.limits,
        )

    def _divergences(self, reverse: Tensor) -> Tensor:
        """Return (D1, D2, D3) with this D2 between those of the last look at held-out data."""
        return torch.stack((self._held_out[0], reverse, self._held_out[1]))

    def validate(self, data: Data | LoaderData) -> dict[str, float]:
        """Measure both models on held-out data."""
        losses, outliers_bounded = self._losses(data)
        values = {
            "validation_loss": losses.mean().item(),
            "validation_loss_bounded": outliers_bounded.mean().item(),
        }
        if self.estimator.proxy is not None:
            self._looks.look(self.estimator, data, self.steps, self.settings.device)
            values |= self._looks.seen
        return values

    def losses(self, data: Data | LoaderData) -> Tensor:
        """Return the flow's loss at each row, shape (n,)."""
        return self._losses(data)[0]

    def _losses(self, data: Data | LoaderData) -> tuple[Tensor, Tensor]:
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
        finite = losses[losses.isfinite()]
        if len(finite):
            self.entropy = min(self.entropy, finite.min().item() - _ENTROPY_MARGIN)
        self._held_out = losses - self.entropy
        return dict(
            zip(("divergence_forward", "divergence_proxy"), self._held_out.tolist(), strict=True)
        )

    def judge(self, loss: float, outliers_bounded: float) -> bool:
        """Remember the weights if they are the best so far; lose patience if not.

        Args:
            loss: Their held-out loss.
            outliers_bounded: The same with outliers bounded, which decides.

        Returns:
            Whether a trial has failed, and the best weights should come back.
        """
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
        self.optimizers[1].param_groups[0]["lr"] *= _DROP

    def _go_back(self) -> None:
        """Put the best weights back, and learn more slowly from there."""
        self.restore_best()
        self.average.begin_anew()
        # What the abandoned flow has drawn, and what its proxy was seen to do, is gone with it.
        self._queue = ReverseQueue()
        self._looks.plateau.begin_anew(self.steps)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] *= _DROP_BOTH

    def restore_best(self) -> None:
        """Put the best weights back."""
        if self.best_weights:
            self.estimator.load_state_dict(self.best_weights)

    def settle(self, held_out: Data | LoaderData) -> float:
        """Put the weights back that held-out data speak for; return their loss.

        These are the best, unless they are within one standard error of those of a simple start:
        then a few held-out rows cannot tell what was learnt from what was memorised, and the
        simpler model stays.

        References:
            Classification and Regression Trees (Breiman et al., 1984), section 3.4.3
        """
        # The atomic loss of later rounds draws its atoms: its rows say too little.
        if self.forward_loss is not None or not self.first_weights:
            self.restore_best()
            return self.best_loss
        self.estimator.load_state_dict(self.first_weights)
        first = self.losses(held_out)
        self.restore_best()
        best = self.losses(held_out)
        gain = first - best
        error = gain.std().item() / len(gain) ** 0.5 if len(gain) > 1 else math.inf
        if gain.mean() <= error:
            self.estimator.load_state_dict(self.first_weights)
            return first.mean().item()
        return best.mean().item()

    def forget_rows(self) -> None:
        """Compare the proxy with none of before: what is held out from here on are other rows."""
        self._looks.plateau.best = None

    @property
    def converged(self) -> bool:
        """Whether held-out data have seen no improvement for long enough."""
        return self.patience.exhausted

    def start(self, held_out: Data | LoaderData) -> None:
        """Look at the held-out data once, so that there is a best before the first epoch ends."""
        if not self.best_weights:
            measured = self.validate(held_out)
            self.observe(measured)
            loss = measured["validation_loss"]
            # A start that is nowhere near some row is none to go back to.
            if math.isfinite(loss):
                self.judge(loss, measured["validation_loss_bounded"])
            if self.simple_start:
                self.first_weights = self.best_weights

    def advance(self, data: Data | LoaderData, held_out: Data | LoaderData) -> dict[str, float]:
        """Run one epoch and look at the held-out data; return the epoch's record.

        Raises:
            TrainingDiverged: If the objective or the held-out loss was not finite.
        """
        start = time.perf_counter()
        record = self.run_epoch(data)
        with self.average.in_place():
            measured = self.validate(held_out)
            loss = measured["validation_loss"]
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the held-out loss became {loss}.")
            self.epoch += 1
            untried = self.patience.before is None
            failed = self.judge(loss, measured["validation_loss_bounded"])
        if untried and self.patience.before is not None:
            self._lower_enough(record["divergence_reverse"])
        if failed:
            self._go_back()
        elif self._looks.plateau.reached():
            self._return_proxy()
        record |= measured | self.observe(measured) | dual_entries(self.dual)
        for name, rate in zip(("flow", "proxy"), self.rates, strict=False):
            record[f"learning_rate_{name}"] = rate
        return record | {"epoch_durations_sec": time.perf_counter() - start}
