r"""`JeffreysDensity`: the joint training without a condition, for samples of a single density.

The objective, the multipliers and the training step are those of
:class:`sbi_jeffreys.JeffreysNPE`, with an x of no entries: samples of shape (n, d) take the place
of :math:`\theta`, and all rows share the one, empty condition. What differs are settings:

- all rows share one :math:`Z_\psi`, so that the draws of all rows estimate one and the same
  divergence. Few rows with many samples each are the better half of that trade: the variance and
  :math:`\log \hat Z_\psi` of a row are unbiased, or nearly so, only with many samples;
- :math:`D_2` is then known to about 0.01 nats, so that its price can be steep where that of a
  posterior, of which it has a handful of samples for each x, would chase noise;
- there is no x to disturb;
- D2 pulls both models in full (no :class:`sbi_jeffreys.objective.Limits`): without a condition no
  model runs away from the other.

An epoch is at least :data:`STEPS_PER_EPOCH` steps: a pass over a hundred samples is one step, too
little to look at held-out data after it.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets.factory import model_builders
from torch import Tensor
from typing_extensions import Self

from .base import Base
from .costs import HuberCost, LinearCost
from .draws import Draws, checked_draws
from .duals import ResilientDual, Weighting, is_maximum_likelihood, weighting
from .estimator import JeffreysEstimator
from .flows import DEFAULT_FLOW, flow_builder
from .inputs.samples import check_points, check_trainable, split_samples
from .objective import Limits
from .optim.weights import copy_of_weights
from .partition import log_unnormalized, measure_log_partition, settled_log_partition
from .proxy import EnergyProxy, ProxyBuilder, proxy_builder
from .training.batches import Data, ones
from .training.record import append_epoch, new_record
from .training.run import run_epochs
from .training.steps import Settings
from .training.training import Training
from .utils.checks import (
    check_counts,
    check_default_type,
    check_gradients,
    check_not_negative,
    check_positive,
    check_seed,
)
from .utils.precision import without_autocast
from .utils.seeding import forked, seeded

__all__ = ["DRAWS", "STEPS_PER_EPOCH", "TEST_KEYS", "JeffreysDensity", "density_dual"]

STEPS_PER_EPOCH = 50
"""Least number of steps between two looks at held-out data."""

TEST_KEYS = ("test_loss", "test_loss_proxy")
"""What the record holds beyond that of ``JeffreysNPE``: both models' NLL on test data."""

DRAWS = Draws(flow=32, base=128, fraction=1 / 16, jitter=0.0)
"""Numbers of samples: all rows share one x; 1/16 of a batch of 100 are 6 rows of 32 samples."""

# Patience of a training that never stops early.
_NEVER = 2**62


def density_dual(*, stiffness: float = 100.0, bound: float = 30.0) -> ResilientDual:
    """Return the dual of a density: data terms at a linear price, D2 at a steep Huber price.

    D2 starts as light as the data terms: at a high learning rate, a heavy D2 locks the two models
    together before either has seen where the data are.

    Args:
        stiffness: Curvature of the price of D2.
        bound: Largest weight of D2.
    """
    data = LinearCost()
    return ResilientDual((data, HuberCost(stiffness, bound), data))


def _check_name(density_estimator: Any) -> None:
    """Refuse estimators of sbi's that cannot do without a condition.

    Raises:
        ValueError: With the name.
    """
    known = isinstance(density_estimator, str) and density_estimator in model_builders
    if known and not density_estimator.startswith("zuko_"):
        raise ValueError(
            f"density_estimator={density_estimator!r} needs a condition, and a density has none: "
            f"take {DEFAULT_FLOW!r} or one of sbi's that begin with 'zuko_'."
        )


class JeffreysDensity:
    r"""Density estimation with the adaptively symmetrised Jeffreys divergence.

    A flow :math:`p_\phi` and an energy-based proxy :math:`q_\psi` are trained together on samples.

    Args:
        objective: "dual" (:func:`density_dual`), "dual_quadratic", "fixed", "ml", or a weighting;
            see :func:`sbi_jeffreys.duals.weighting`.
        density_estimator: "coupling_nsf", one of sbi's names that begin with "zuko_" (its others
            need a condition), or a function of (samples, empty x) that builds an estimator.
        proxy: "mlp", or a function of (samples, empty context) that builds the energy network.
        draws: Numbers of samples that estimate the divergences.
        batch_size: Samples in a step.
        learning_rate: Learning rate of the flow (Adam).
        proxy_learning_rate: Learning rate of the proxy (AdamW).
        proxy_weight_decay: Decoupled weight decay of the proxy.
        seed: Seed of split, initialisation and training; ``None`` leaves torch's generator in
            charge.

    Raises:
        TypeError: If an argument is not of its kind.
        ValueError: If a name is unknown or a number out of range.

    References:
        Adaptive Symmetrization of the KL Divergence (Ben-Dov and Chamon, 2025), arXiv 2511.11159

    Example:
        >>> density = JeffreysDensity(seed=0).fit(torch.randn(100, 2), max_num_epochs=1)
        >>> density.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> density.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        *,
        objective: str | Weighting = "dual",
        density_estimator: Any = DEFAULT_FLOW,
        proxy: str | ProxyBuilder = "mlp",
        draws: Draws | None = None,
        batch_size: int = 100,
        learning_rate: float = 2e-3,
        proxy_learning_rate: float = Settings.proxy_learning_rate,
        proxy_weight_decay: float = 0.2,
        seed: int | None = None,
    ) -> None:
        check_counts(1, batch_size=batch_size)
        check_positive(learning_rate=learning_rate, proxy_learning_rate=proxy_learning_rate)
        check_not_negative(proxy_weight_decay=proxy_weight_decay)
        dual = isinstance(objective, str) and objective == "dual"
        self._weighting: Weighting = density_dual() if dual else weighting(objective)
        self._default_flow = density_estimator == DEFAULT_FLOW
        _check_name(density_estimator)
        # Builders are made when needed, since those of names cannot be pickled; names are checked.
        flow_builder(density_estimator, None)
        proxy_builder(proxy)
        self._density_estimator, self._proxy = density_estimator, proxy
        self._draws = checked_draws(draws, DRAWS)
        self._settings: dict[str, Any] = {
            "training_batch_size": batch_size,
            "learning_rate": learning_rate,
            "proxy_learning_rate": proxy_learning_rate,
            "proxy_weight_decay": proxy_weight_decay,
        }
        self._seed = check_seed(seed)
        self._estimator: JeffreysEstimator | None = None
        self._log_partition: float | None = None
        self._summary: dict[str, list[Any]] = {}

    @without_autocast()
    def fit(
        self,
        samples: Tensor,
        validation_data: Tensor | None = None,
        *,
        test_data: Tensor | None = None,
        validation_fraction: float = 0.1,
        max_num_epochs: int = 200,
        stop_after_epochs: int | None = 20,
        callback: Callable[["JeffreysDensity"], None] | None = None,
    ) -> Self:
        """Train flow and proxy from scratch.

        Args:
            samples: Samples, shape (n, d), at least 2 to train on.
            validation_data: Held-out samples, shape (m, d), in place of a fraction of the others.
            test_data: Samples, shape (k, d), whose NLL enters the record and nothing else.
            validation_fraction: Fraction of the samples that is held out.
            max_num_epochs: Largest number of epochs, each of at least ``STEPS_PER_EPOCH`` steps.
            stop_after_epochs: Epochs without a better held-out cross-entropy of the flow after
                which training stops, and returns to the best weights; with the default flow, whose
                start is a Gaussian, only if they beat that by a standard error. ``None`` trains
                for ``max_num_epochs`` and keeps the last weights.
            callback: Called with the density after every epoch, while it holds that epoch's
                weights and record. What it draws from torch's generator is none of the training's.

        Returns:
            The density itself.

        Raises:
            RuntimeError: If torch notes no gradients.
            TypeError: If samples are no arrays of real numbers.
            ValueError: If they are too few, of the wrong shape, not finite, or constant in a
                column; if a number is out of range.
        """
        check_default_type()
        check_gradients()
        check_counts(1, max_num_epochs=max_num_epochs)
        if stop_after_epochs is not None:
            check_positive(stop_after_epochs=stop_after_epochs)
        samples = check_points("samples", samples)
        others = {"validation_data": validation_data, "test_data": test_data}
        held_out, test = (
            None if values is None else check_points(name, values, dim=samples.shape[1])
            for name, values in others.items()
        )
        with seeded(self._seed):
            if held_out is None:
                samples, held_out = split_samples(samples, validation_fraction)
            else:
                # Scales and starts look at the first rows.
                samples = samples[torch.randperm(len(samples))]
            check_trainable(samples)
            settings = self._settings_for(len(samples), stop_after_epochs)
            training = Training(
                self._build(samples),
                self._weighting,
                self._draws,
                settings,
                ones,
                simple_start=self._default_flow,
            )
            passes = math.ceil(STEPS_PER_EPOCH * settings.training_batch_size / len(samples))
            self._run(
                training,
                _as_data(samples, passes),
                _as_data(held_out),
                test,
                max_num_epochs,
                callback,
                keep_last=stop_after_epochs is None,
            )
        return self

    def _settings_for(self, num: int, stop_after_epochs: int | None) -> Settings:
        """Return the settings of a training on so many samples."""
        batch = min(self._settings["training_batch_size"], num)
        return Settings(
            **{**self._settings, "training_batch_size": batch},
            stop_after_epochs=stop_after_epochs or _NEVER,
            limits=Limits(math.inf, math.inf),
            muon=False,
            proxy_plateau=False,
            trials=False,
        )

    def _build(self, samples: Tensor) -> JeffreysEstimator:
        empty = samples.new_empty(len(samples), 0)
        with_proxy = not is_maximum_likelihood(self._weighting)
        with warnings.catch_warnings():
            # sbi standardizes even an x that has no entries.
            warnings.filterwarnings("ignore", r"std\(\): degrees of freedom", UserWarning)
            flow = flow_builder(self._density_estimator, None)(samples, empty)
        return JeffreysEstimator(
            flow,
            samples,
            empty,
            base=Base(None, samples) if with_proxy else None,
            build_proxy=proxy_builder(self._proxy),
        )

    def _run(
        self,
        training: Training,
        data: Data,
        held_out: Data,
        test: Tensor | None,
        max_num_epochs: int,
        callback: Callable[["JeffreysDensity"], None] | None,
        *,
        keep_last: bool,
    ) -> None:
        """Train, and leave the weights to be kept in the estimator: the last, or the best."""
        training.start(
            held_out,
            ": the density that was built gives held-out samples no finite density. Look for "
            "outliers among them.",
        )
        # From here on there is a density to speak of; until here the last one stays.
        self._estimator, self._log_partition = training.estimator, None
        self._summary = new_record() | {key: [] for key in TEST_KEYS}
        last = training.best_weights

        def after_epoch(epoch: dict[str, float]) -> None:
            nonlocal last
            with training.average.in_place():
                last = copy_of_weights(training.estimator) if keep_last else {}
                self._look(held_out.theta, test, epoch)
                if callback is not None:
                    with forked():
                        callback(self)

        diverged = True
        try:
            diverged = run_epochs(
                training,
                data,
                held_out,
                after_epoch,
                max_num_epochs=max_num_epochs,
                outliers_in="the samples",
            )
        finally:
            # Also on Ctrl-C, which leaves the best.
            if diverged:
                training.restore_best()
            self._log_partition = None
            training.estimator.eval()
        loss = training.best_loss
        if not diverged and keep_last:
            training.estimator.load_state_dict(last)
        elif not diverged:
            loss = training.settle(held_out)
        training.estimator.zero_grad(set_to_none=True)
        self._summary["epochs_trained"].append(training.epoch)
        self._summary["best_validation_loss"].append(loss)

    @torch.no_grad()
    def _look(self, held_out: Tensor, test: Tensor | None, epoch: dict[str, float]) -> None:
        """Measure with one, well estimated Z, and append the epoch to the record."""
        estimator = self._fitted
        losses = dict.fromkeys(TEST_KEYS, float("nan"))
        if test is not None:
            losses["test_loss"] = -self.log_prob(test).mean().item()
        if estimator.proxy is not None:
            # What a callback is told of Z, too; after training it is estimated with more draws.
            log_z = self._log_partition = measure_log_partition(estimator, num_pieces=1)
            # The training looks at each held-out row with a Z of its own; there is only one.
            epoch["log_partition_mean"], epoch["log_partition_std"] = log_z, 0.0
            energy = log_unnormalized(estimator, held_out).mean().item()
            epoch["validation_loss_proxy"] = log_z - energy
            if test is not None:
                energy = log_unnormalized(estimator, test).mean().item()
                losses["test_loss_proxy"] = log_z - energy
        append_epoch(self._summary, epoch)
        for key, value in losses.items():
            self._summary[key].append(value)

    @property
    def _fitted(self) -> JeffreysEstimator:
        if self._estimator is None:
            raise RuntimeError("Nothing is trained yet: call fit(samples) first.")
        return self._estimator

    @property
    def summary(self) -> dict[str, list[Any]]:
        """Record of the training: the lists of ``JeffreysNPE`` and those of ``TEST_KEYS``."""
        return self._summary

    @property
    def has_proxy(self) -> bool:
        """Whether there is a proxy; with objective="ml" there is none."""
        return self._fitted.proxy is not None

    @property
    def proxy(self) -> EnergyProxy:
        """The proxy; :meth:`proxy_log_prob` is its normalised density.

        Raises:
            RuntimeError: Before :meth:`fit`.
            ValueError: If it was trained with objective="ml".
        """
        proxy = self._fitted.proxy
        if proxy is None:
            raise ValueError("There is no proxy: the density was trained with objective='ml'.")
        return proxy

    @property
    @without_autocast()
    def log_partition(self) -> float:
        r""":math:`\log Z_\psi`, nats, by importance sampling from flow and base.

        The draws are doubled until the estimate moves by less than 0.01; if it does not settle
        there is a warning. It is estimated once, under the density's own seed. A callback of
        :meth:`fit` gets the epoch's estimate, from a fixed number of draws.
        """
        if self._log_partition is None:
            with seeded(self._seed):
                _ = self.proxy
                self._log_partition = settled_log_partition(self._fitted)
        return self._log_partition

    @torch.no_grad()
    @without_autocast()
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the flow's log density, shape (n,), nats, for points of shape (n, d)."""
        estimator = self._fitted
        x = check_points("x", x, dim=int(estimator.input_shape[0]))
        return estimator.log_prob_embedded(x.unsqueeze(0), x[:, :0])[0]

    @torch.no_grad()
    @without_autocast()
    def proxy_log_prob(self, x: Tensor) -> Tensor:
        """Return the proxy's log density, normalised by :attr:`log_partition`, as `log_prob`."""
        x = check_points("x", x, dim=int(self._fitted.input_shape[0]))
        _ = self.proxy
        return log_unnormalized(self._fitted, x) - self.log_partition

    @without_autocast()
    def sample(self, num: int) -> Tensor:
        """Return samples of the flow, shape (num, d), from torch's global generator."""
        check_counts(1, num=num)
        return self._fitted.sample_embedded(num, torch.empty(1, 0)).squeeze(1)


def _as_data(samples: Tensor, passes: int = 1) -> Data:
    # Rows named several times make several passes one epoch.
    rows = torch.arange(len(samples)).repeat(passes)
    return Data(samples, samples[:, :0], samples.new_ones(len(samples), 1), rows)
