r"""One step of the joint training: both models descend, then the multipliers ascend.

A whole step descends :math:`\lambda_1 D_1 + \lambda_2 D_2 + \lambda_3 D_3` in both models. Every
other step trains the flow only, because to sample the flow and to train the proxy are what costs,
and the proxy converges first. A proxy whose Gaussians each move on their own needs whole steps at
first. After each step the weighting moves the multipliers.

What is looked at, and kept, is a running mean of the weights over the last steps (Polyak
averaging), at the start over fewer: at a constant learning rate the weights themselves
wander about, and a held-out curve that does so too stops a run too early.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..draws import Draws, ReverseQueue, negatives
from ..duals import DualState, Weighting
from ..estimator import JeffreysEstimator
from ..objective import LIMITS, BatchTerms, Limits, batch_terms, flow_terms, lagrangian
from ..optim.adam import Optimizer
from ..optim.weights import RunningMean, moving
from ..replay import cuda
from .batches import Data, LoaderData
from .descent import (
    Gradients,
    check_finite,
    clip,
    clip_on_device,
    flow_optimizer,
    gradients_of,
    proxy_optimizer,
)
from .graphs import Batch, StepGraphs, on_gpu
from .held_out import LossHook

__all__ = ["JointSteps", "Settings"]

# How much the newest weights count in the running mean at first. Where a flow has a proxy to
# follow it moves fast, and the mean looks back over a tenth of the steps; without one, which soon
# overfits, a longer memory is better.
_NEWEST = 10
# Steps at first that all evaluate all terms where each of the proxy's Gaussians moves on its own,
# and starts anew. By then a run on few simulations has mostly ended; one on many goes on because
# the flow learns more slowly than the proxy. Where they move as one, few simulations determine the
# proxy, and unless its form was named it has been fitted: it is ahead from the first step on.
_WHOLE = 1000


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of the training loop; those of sbi have sbi's meaning.

    ``limits`` bound how hard D2 pulls. ``proxy_plateau`` puts the proxy's best weights back when it
    stops improving; ``trials`` is whether a lower price of D2 is tried before a run ends
    (:mod:`sbi_jeffreys.training.patience`). ``stack`` lets the pool hear likelihoods beside the
    proxy's own (:mod:`sbi_jeffreys.likelihood.stacking`). ``levels`` is whether a likelihood of
    levels is tried (:mod:`sbi_jeffreys.likelihood.discrete`), ``sharpness`` whether units of
    likelihoods learn how sharply they bend (:mod:`sbi_jeffreys.likelihood.network`). ``muon``
    trains matrices of the flow by :class:`~sbi_jeffreys.optim.muon.Muon`; maximum likelihood, which
    has no proxy to follow, overfits sooner with it and stays with Adam, whose decoupled
    ``weight_decay`` is there to compare with.
    """

    training_batch_size: int = 200
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    proxy_learning_rate: float = 5e-3
    proxy_weight_decay: float = 0.1
    limits: Limits = LIMITS
    proxy_plateau: bool = True
    trials: bool = True
    stack: bool = True
    levels: bool = True
    sharpness: bool = True
    muon: bool = True
    stop_after_epochs: int = 20
    clip_max_norm: float | None = 5.0
    device: str = "cpu"


@dataclass
class JointSteps:
    """Flow, proxy and multipliers, and what must survive from one step to the next.

    Args:
        estimator: Flow and proxy.
        weighting: Source of the weights of the divergences.
        draws: Numbers of samples.
        settings: Hyper-parameters.
        kernel: Calibration kernel, a function of x.
        forward_loss: Replaces the forward loss, for later rounds.
        from_prior: Whether theta was drawn from the prior; of the rest of the prior a proxy
            knows nothing, and must not simulate there.

    Attributes:
        steps: Steps taken so far.
        dual: Multipliers and slacks.
        optimizers: That of the flow and, where there is one, that of the proxy.
        average: Running mean of the weights.
        queue: Samples of the flow for the steps to come.
        graphs: Recorded steps.
    """

    estimator: JeffreysEstimator
    weighting: Weighting
    draws: Draws
    settings: Settings
    kernel: Callable[[Tensor], Tensor]
    forward_loss: LossHook | None = None
    from_prior: bool = True
    steps: int = 0
    dual: DualState = field(init=False)
    optimizers: list[Optimizer] = field(init=False)
    average: RunningMean = field(init=False)
    queue: ReverseQueue = field(init=False)
    graphs: StepGraphs = field(init=False)

    def __post_init__(self) -> None:
        self._simulate_from_prior_only()
        self.dual = self.weighting.init()
        # D1 and D3 as held-out data have last said.
        self._held_out = torch.zeros(2, dtype=torch.float64)
        # D2 as last estimated, nats.
        self._reverse = torch.zeros((), dtype=torch.float64)
        self.queue, self.graphs = ReverseQueue(), StepGraphs()
        s, proxy = self.settings, self.estimator.proxy
        self.average = RunningMean(moving(self.estimator.train()), 1 if proxy is None else _NEWEST)
        muon = s.muon and proxy is not None
        flow = flow_optimizer(self.estimator, s.learning_rate, s.weight_decay, muon=muon)
        self.optimizers = [flow]
        if proxy is not None:
            self.optimizers.append(
                proxy_optimizer(proxy.network, s.proxy_learning_rate, s.proxy_weight_decay)
            )

    def _simulate_from_prior_only(self) -> None:
        """Let the proxy simulate no pairs where it knows nothing of a part of the prior."""
        if not self.from_prior:
            self.draws = replace(self.draws, simulated=0.0)

    @property
    def stiffness(self) -> float:
        """Factor on the stiffness of the price of D2."""
        return 1.0

    @property
    def rates(self) -> list[float]:
        """Present learning rates, of the flow and, where there is one, of the proxy."""
        return [optimizer.lr for optimizer in self.optimizers]

    def scale_rates(self, *factors: float) -> None:
        """Multiply the learning rates, of the flow and of the proxy, by these factors."""
        for optimizer, factor in zip(self.optimizers, factors, strict=False):
            optimizer.lr *= factor

    def run_epoch(self, data: Data | LoaderData) -> dict[str, float]:
        """Take one pass over the data; return means over its batches.

        Raises:
            TrainingDiverged: If the objective was not finite.
        """
        self.estimator.train()
        total = torch.zeros(2, dtype=torch.float64)
        seen = 0
        for num_rows, terms in self._pass_over(data):
            total += num_rows * terms
            seen += num_rows
        forward, reverse = (total / seen).tolist()
        if self.estimator.proxy is None:
            return {"training_loss": forward}
        return {"training_loss": forward, "divergence_reverse": reverse}

    def _pass_over(self, data: Data | LoaderData) -> Iterator[tuple[int, Tensor]]:
        """Take a step for each batch, and yield its number of rows and what :meth:`step` returns.

        A GPU takes the next one while what the last has found moves the multipliers: they follow
        one step later there.
        """
        s, begun = self.settings, deque[tuple[int, Callable[[], Tensor]]]()
        ahead = 1 if on_gpu(self.estimator.pool_weight.device) else 0
        for batch in data.batches(s.training_batch_size, s.device, shuffle=True):
            try:
                begun.append((len(batch[0]), self.begin(*batch)))
            except Exception:
                # Some estimators refuse NaN: that the step before has left them comes first.
                for _, end in begun:
                    end()
                raise
            if len(begun) > ahead:
                num_rows, end = begun.popleft()
                yield num_rows, end()
        for num_rows, end in begun:
            yield num_rows, end()

    def step(self, theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
        """Descend in the models, ascend in the multipliers; return (forward, reverse).

        Raises:
            TrainingDiverged: If the objective or its gradient was not finite.
        """
        return self.begin(theta, x, masks)()

    def begin(self, theta: Tensor, x: Tensor, masks: Tensor) -> Callable[[], Tensor]:
        """Begin a step, and return what ends it.

        A GPU is asked to descend before it is known whether all is finite; who waits for that need
        not do so at once.
        """
        whole, batch = self._evaluates_all(len(theta)), (theta, x, masks)
        recorded = self.graphs.find(self, batch, whole=whole)
        descend: Callable[[], None]
        if recorded is None:
            found, gradients = self.gradient(batch, self.dual.multipliers.tolist(), whole=whole)
            descend = partial(self.descend, gradients)
        else:
            found, gradients = recorded.gradient(self, batch), recorded.gradients
            descend = recorded.descend
        ahead = on_gpu(found.device)
        # In one transfer.
        arrived = cuda.on_its_way(found) if ahead else lambda: found
        if ahead:
            self._move(descend)

        def end() -> Tensor:
            found = arrived().to("cpu", torch.float64)
            (forward, reverse), (objective, *norms) = found[:2], found[2:].tolist()
            check_finite(objective, norms)
            if not ahead:
                clip(gradients, norms, self.settings.clip_max_norm)
                self._move(descend)
            return self._ascend(forward, reverse, whole=whole)

        return end

    def _move(self, descend: Callable[[], None]) -> None:
        descend()
        self.steps += 1
        self.average.update(self.steps)

    def _ascend(self, forward: Tensor, reverse: Tensor, *, whole: bool) -> Tensor:
        """Move the multipliers; return (forward, reverse)."""
        if whole:
            self._reverse = reverse
        if self.estimator.proxy is not None:
            # A price with its curvature times s moves as the price itself does on s D2.
            reverse = self.stiffness * self._reverse
            self.dual = self.weighting.step(self.dual, self._divergences(reverse))
        return torch.stack((forward, self._reverse))

    def gradient(
        self, batch: Batch, multipliers: Sequence[float] | Tensor, *, whole: bool
    ) -> tuple[Tensor, Gradients]:
        """Return what a step has found, and the gradients, which are also left at the parameters.

        Args:
            batch: theta, x and masks.
            multipliers: Weights of the three divergences.
            whole: Whether to evaluate all terms.

        Returns:
            The forward loss, D2, the objective and the norm of each model's gradient, a vector.
        """
        terms = self._terms(*batch, whole=whole)
        if self.estimator.proxy is None:
            loss = multipliers[0] * terms.forward
        else:
            loss = lagrangian(terms, multipliers, self.draws.gauge)
        gradients = gradients_of(loss, self.optimizers)
        found = (terms.forward.detach(), terms.reverse_estimate, loss.detach(), *gradients.norms)
        return torch.stack(found), gradients

    def descend(self, gradients: Gradients) -> None:
        """Take the step of the optimizers, with these gradients, which are at the parameters.

        On a GPU they are clipped there, without asking for their norms.
        """
        if on_gpu(gradients.norms[0].device):
            clip_on_device(gradients, self.settings.clip_max_norm)
        for optimizer in self.optimizers:
            optimizer.step()

    def _evaluates_all(self, num_rows: int) -> bool:
        """Return whether the next step evaluates all terms, or those of the flow alone."""
        proxy = self.estimator.proxy
        if proxy is None:
            return False
        # Without pairs of the proxy's own, the data alone would have every other step.
        if proxy.likelihood is None or self.draws.num_simulated(num_rows) == 0:
            return True
        first = self.steps < _WHOLE and not proxy.likelihood.as_one
        return first or self.forward_loss is not None or self.steps % self.draws.every == 0

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
            base_draws=negatives(self.estimator, theta, self.draws.base, from_base=self.from_prior),
            queue=self.queue,
            forward_loss=loss,
            limits=self.settings.limits,
        )

    def _divergences(self, reverse: Tensor) -> Tensor:
        """Return (D1, D2, D3) with this D2 between those of the last look at held-out data."""
        return torch.stack((self._held_out[0], reverse, self._held_out[1]))
