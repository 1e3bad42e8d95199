r"""`JeffreysNPE`: the joint training as an sbi trainer. Glue only.

What users call is here. What sbi's trainer calls in turn is in
:mod:`sbi_jeffreys.training.building`, which splits the simulations and builds flow and proxy, and
in :mod:`sbi_jeffreys.training.joint_trainer`, which trains them. The objective lives in
:mod:`sbi_jeffreys.objective`, the multipliers move in :mod:`sbi_jeffreys.duals`; a step is in
:mod:`sbi_jeffreys.training.steps`, what follows from held-out data in
:mod:`sbi_jeffreys.training.training`, how a run begins and ends in
:mod:`sbi_jeffreys.training.run`.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sbi.inference.trainers.npe.npe_base import PosteriorEstimatorTrainer
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalEstimatorBuilder
from sbi.utils import RestrictedPrior
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from .draws import Draws, checked_draws
from .duals import Weighting, weighting
from .estimator import JeffreysEstimator
from .flows import DEFAULT_FLOW, FlowBuilder, flow_builder
from .inputs.priors import check_prior
from .inputs.simulations import (
    check_held_out,
    check_same_rows,
    check_simulations,
    constant_column,
    warn_outside_prior,
)
from .proxy import ProxyBuilder, proxy_builder
from .selection.missing import has_codes
from .training.batches import PerRow, ones
from .training.joint_trainer import JointTrainer
from .training.record import new_record
from .training.split import NO_ROWS
from .training.steps import Settings
from .utils.checks import (
    check_default_type,
    check_gradients,
    check_not_negative,
    check_positive,
    check_seed,
    check_training,
)
from .utils.precision import without_autocast
from .utils.seeding import aside, generator_states, of_round, seeded

__all__ = ["JeffreysNPE"]


class JeffreysNPE(JointTrainer):
    r"""Neural posterior estimation with the adaptively symmetrised Jeffreys divergence.

    A drop-in for sbi's ``NPE``. The flow :math:`p_\phi(\theta|x)` is trained together with an
    energy-based proxy :math:`q_\psi(\theta|x)` so that three divergences shrink jointly: data to
    flow, flow to proxy and data to proxy. A resilient dual problem sets their weights while it
    trains. What comes of it is a density of both models, pooled; for the flow alone, exact and
    fast, ``build_posterior(estimator.flow)``.

    Args:
        prior: Prior over theta; with ``None`` the proxy is defined relative to a Gaussian.
        density_estimator: "coupling_nsf" (a zuko spline flow with coupling layers behind soft
            walls at the prior's bounds, which sees the columns of x that say something of theta:
            :func:`sbi_jeffreys.flows.flow_nn`), any name that sbi's ``NPE`` takes but "mnpe" and
            "mnle", or a function of (theta, x) that builds a ``ConditionalDensityEstimator``.
        device: "cpu", "cuda", "cuda:0", ...
        logging_level: As in sbi.
        summary_writer: As in sbi (deprecated there; use ``tracker``).
        tracker: As in sbi; it receives the record live, after every epoch.
        show_progress_bars: Whether to show a progress bar while training.
        proxy: "likelihood" or "mlp" (:func:`sbi_jeffreys.proxy.proxy_nn`), or a function of
            (theta, embedded x) that builds the energy network. A "likelihood" takes the form that
            held-out data prefer (:mod:`sbi_jeffreys.likelihood.forms`). Without a prior there is
            nothing that it could multiply, and "mlp" takes its place. Where a critic finds the
            default, "likelihood", wanting, ``train`` trains once more with "mlp" and keeps what
            held-out data prefer (:mod:`sbi_jeffreys.training.second_proxy`).
        objective: "dual", "dual_quadratic", "fixed", "ml", or a weighting; see
            :func:`sbi_jeffreys.duals.weighting`.
        draws: Numbers of samples that estimate the divergences.
        proxy_learning_rate: Learning rate of the proxy (AdamW).
        proxy_weight_decay: Decoupled weight decay of the proxy.
        seed: Seed of the split, the initialisation and the training. The same seed on the same
            machine gives the same weights, to the bit, on CPU. torch has one generator for all
            threads: those that train under seeds take turns, and those that make trainers,
            append simulations, load posteriors or evaluate those of other flows than the default
            wait meanwhile. ``None`` leaves that generator in charge, as in sbi.

    Raises:
        TypeError: If the prior is no distribution with a density, the proxy no builder, or the seed
            no integer.
        ValueError: If a name is unknown or a hyper-parameter not positive.

    References:
        Adaptive Symmetrization of the KL Divergence (Ben-Dov and Chamon, 2025), arXiv 2511.11159

    Example:
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((300,))
        >>> x = theta + 0.1 * torch.randn(300, 2)
        >>> trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False)
        >>> estimator = trainer.append_simulations(theta, x).train(max_num_epochs=2)
        >>> posterior = trainer.build_posterior()
        >>> posterior.sample((5,), x=torch.zeros(2), show_progress_bars=False).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        prior: Distribution | None = None,
        density_estimator: str
        | ConditionalEstimatorBuilder[ConditionalDensityEstimator] = DEFAULT_FLOW,
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: Any = None,
        tracker: Any = None,
        show_progress_bars: bool = True,
        *,
        proxy: str | ProxyBuilder = "likelihood",
        objective: str | Weighting = "dual",
        draws: Draws | None = None,
        proxy_learning_rate: float = Settings.proxy_learning_rate,
        proxy_weight_decay: float = Settings.proxy_weight_decay,
        seed: int | None = None,
    ) -> None:
        # As the user has it: later calls may name it as the proposal.
        self._prior_as_given = prior
        prior = check_prior(prior)
        check_positive(proxy_learning_rate=proxy_learning_rate)
        check_not_negative(proxy_weight_decay=proxy_weight_decay)
        if prior is None and proxy == "likelihood":
            proxy = "mlp"
        build = flow_builder(density_estimator, prior)
        with aside():
            # sbi draws from the prior to look at it; the user's random numbers stay theirs.
            super().__init__(
                prior=prior,
                density_estimator=build,
                device=device,
                logging_level=logging_level,
                summary_writer=summary_writer,
                tracker=tracker,
                show_progress_bars=show_progress_bars,
            )
        ours = isinstance(build, FlowBuilder)
        self._default_flow = ours and build.looks_for_itself
        self._walls = build.prior if ours else None
        self._spec = {
            "density_estimator": density_estimator if isinstance(density_estimator, str) else None,
            "proxy": proxy if isinstance(proxy, str) else None,
        }
        self._build_proxy = proxy_builder(proxy)
        self._weighting = weighting(objective)
        self._draws = checked_draws(draws, Draws())
        self._settings: dict[str, Any] = {
            "proxy_learning_rate": proxy_learning_rate,
            "proxy_weight_decay": proxy_weight_decay,
        }
        self._seed = check_seed(seed)
        # Beside what a flow alone has: the weight of the proxy that each call ended with.
        self._summary = new_record() | {"pool_weight": []}

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        proposal: Any = None,
        exclude_invalid_x: bool | None = None,
        data_device: str | None = None,
    ) -> Self:
        r"""Store simulations; arguments as in sbi.

        Args:
            theta: Parameters, shape (n, d); tensors of any real type or numpy arrays.
            x: Data, shape (n, *event). Rows with NaN or inf are excluded, with a count. A code far
                from all values of a column, like -999, marks missing values, which the default
                flow fills in (:mod:`sbi_jeffreys.selection.missing`).
            proposal: What theta was drawn from, if not the prior.
            exclude_invalid_x: As in sbi.
            data_device: As in sbi.

        Raises:
            TypeError, ValueError: See :func:`sbi_jeffreys.inputs.simulations.check_simulations`.
        """
        theta, x = check_simulations(theta, x, self._prior, self._event_shape)
        proposal = self._with_our_prior(proposal)
        if proposal is None:
            warn_outside_prior(theta.to(self._device), self._prior)
        with warnings.catch_warnings():
            if self._default_flow and constant_column(x.flatten(1)) is None:
                # sbi says so of all that varies by less than 1e-14; our flow takes any unit.
                warnings.filterwarnings("ignore", "Data has constant values", UserWarning)
            if self._default_flow and (x.dim() == 2 or has_codes(x.flatten(1))):
                # Where they hide all else, our flow does not see them in standard deviations; what
                # stands for missing values it does not see at all, or train() says so.
                warnings.filterwarnings("ignore", "Data has extreme outliers", UserWarning)
            super().append_simulations(theta, x, proposal, exclude_invalid_x, data_device)
        return self

    def _with_our_prior(self, proposal: Any) -> Any:
        """Return a proposal that is the user's prior, or restricts it, as one of the trainer's.

        The trainer may have wrapped the prior, and the wrapped one is another object to sbi.
        """
        given = self._prior_as_given
        if proposal is None or given is None:
            return proposal
        if proposal is given:
            return self._prior
        if isinstance(proposal, RestrictedPrior) and proposal._prior is given:
            proposal = copy.copy(proposal)
            proposal._prior = self._prior
        return proposal

    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = Settings.training_batch_size,
        learning_rate: float = Settings.learning_rate,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = Settings.stop_after_epochs,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = Settings.clip_max_norm,
        calibration_kernel: Callable | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        use_combined_loss: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict | None = None,
        *,
        validation_data: tuple[Tensor, Tensor] | None = None,
    ) -> JeffreysEstimator:
        r"""Train flow and proxy; arguments as in sbi's ``NPE``.

        In later rounds the forward loss is sbi's atomic one, for every estimator. Where a trained
        flow goes on with other simulations than before, the default proxy is fitted anew, to these.

        Args:
            num_atoms: As in sbi.
            training_batch_size: As in sbi; the last rows join the other batches.
            learning_rate: Learning rate of the flow, 4e-3 (sbi: 5e-4): Muon for its matrices, whose
                updates have a root mean square of 0.6 times this rate whatever the gradient, Adam
                for the rest
                (:class:`sbi_jeffreys.optim.muon.Muon`); Adam for all with ``objective="ml"``.
                With a rate above the default at which first steps lose what the default flow's
                start explains, training warns and takes the default
                (:mod:`sbi_jeffreys.training.first_steps`). A training that is resumed keeps its
                rates, as in sbi, unless it has diverged.
            validation_fraction: Fraction of the simulations that is held out; of the new ones,
                where a trained flow goes on (sbi: of all, those that it was trained on among them).
            stop_after_epochs: Epochs without progress of the flow's held-out cross-entropy, after
                which training stops. A lower price of D2 is tried after a quarter of them. Epochs
                of fewer than four batches count in proportion, those of more than twenty as one for
                every twenty; the first 200 steps do not count; at a learning rate below the default
                all count less (:class:`sbi_jeffreys.training.patience.Patience`). The best weights
                are kept. With the default flow, whose start is the linear posterior in closed form,
                they must beat that by a standard error on held-out data
                (:meth:`sbi_jeffreys.training.training.Training.settle`).
            max_num_epochs: Largest number of epochs; as in sbi, those before a training was resumed
                count.
            clip_max_norm: Norm at which gradients are clipped, of flow and proxy separately.
            calibration_kernel: As in sbi, one weight for each x or a number; it weighs all
                divergences. Only ratios of weights count: they are divided by their mean over the
                simulations that are trained on (the first 10,000). Pairs that the proxy simulates
                have no x to weigh, and take the mean.
            resume_training: Go on where the last call stopped.
            force_first_round_loss: As in sbi.
            discard_prior_samples: As in sbi.
            use_combined_loss: As in sbi.
            retrain_from_scratch: As in sbi.
            show_train_summary: As in sbi.
            dataloader_kwargs: As in sbi; with it, batches come from torch's DataLoader.
            validation_data: Held-out (theta, x), in place of a fraction of the simulations. A
                training that is resumed keeps what it began with.

        Returns:
            An sbi density estimator: flow and proxy pooled with the weight ``.weight`` that
            held-out simulations choose (:mod:`sbi_jeffreys.pool`); the two are ``.flow`` and
            ``.proxy``, likelihoods that the pool hears beside the proxy's own ``.stack``. The
            weight is zero, the flow alone, in later rounds, and with a restricted prior as the
            proposal, where the proxy is no likelihood, and after a divergence or an error that
            ended the run.

        Raises:
            RuntimeError: If there are no simulations, nothing to resume, or no gradients.
            ValueError: If a hyper-parameter is out of range, there are too few simulations, a
                resumed training is given other rows, or is to begin anew, or torch makes networks
                of another type than float32.
            KeyboardInterrupt: On Ctrl-C, after the best weights have been put back; go on with
                ``resume_training=True``. Before the first epoch nothing has changed, and what was
                trained before is still there.
        """
        self._check_ready(resume=resume_training, from_scratch=retrain_from_scratch)
        check_training(
            num_atoms=num_atoms,
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            stop_after_epochs=stop_after_epochs,
            max_num_epochs=max_num_epochs,
            clip_max_norm=clip_max_norm,
            calibration_kernel=calibration_kernel,
            validation_fraction=validation_fraction,
            validation_data=validation_data,
            dataloader_kwargs=dataloader_kwargs,
        )
        held_out = self._checked(validation_data)
        unchanged, released = self._unchanged_unless_begun(), self._embedding_released()
        with without_autocast(), self._seeded(resume_training), unchanged, released:
            if self._neural_net is None or retrain_from_scratch:
                self._split = NO_ROWS
            if not resume_training:
                self._validation_data = held_out
            elif held_out is not None:
                check_same_rows(held_out, self._validation_data)
            self._num_atoms = num_atoms
            self._use_combined_loss = use_combined_loss
            # The parent's train() only adds what MDN proposals need: its non-atomic loss. The
            # atomic one is used for all estimators here, since flow and proxy share it.
            return PosteriorEstimatorTrainer.train(
                self,
                training_batch_size=training_batch_size,
                learning_rate=learning_rate,
                validation_fraction=validation_fraction,
                stop_after_epochs=stop_after_epochs,
                max_num_epochs=max_num_epochs,
                clip_max_norm=clip_max_norm,
                calibration_kernel=(
                    ones if calibration_kernel is None else PerRow(calibration_kernel)
                ),
                resume_training=resume_training,
                force_first_round_loss=force_first_round_loss,
                discard_prior_samples=discard_prior_samples,
                retrain_from_scratch=retrain_from_scratch,
                show_train_summary=show_train_summary,
                dataloader_kwargs=dataloader_kwargs,
            )

    def _check_ready(self, *, resume: bool, from_scratch: bool) -> None:
        """Refuse a call that has nothing to train on, or nothing to go on with."""
        if not self._data_round_index:
            raise RuntimeError("No simulations: call append_simulations(theta, x) before train().")
        check_default_type()
        check_gradients()
        if resume and self._training is None:
            raise RuntimeError("Nothing to resume: call train() without resume_training first.")
        if resume and from_scratch:
            raise ValueError(
                "resume_training goes on with the last training, retrain_from_scratch begins "
                "another: choose one of the two."
            )

    def _checked(self, validation_data: tuple[Tensor, Tensor] | None) -> Any:
        """Return held-out simulations as a user passed them, checked; ``None`` for none."""
        if validation_data is None:
            return None
        kept = any(not each.isfinite().all() for each in self._x_roundwise)
        return check_held_out(validation_data, self._prior, self._event_shape, with_invalid=kept)

    @property
    def _event_shape(self) -> torch.Size | None:
        """Shape of one x, once simulations are there."""
        return self._x_roundwise[0].shape[1:] if self._x_roundwise else None

    @contextlib.contextmanager
    def _seeded(self, resume: bool) -> Iterator[None]:
        """Run under the trainer's own seed, and leave the global generators as they were."""
        seed = None if self._seed is None else of_round(self._seed, max(self._data_round_index))
        states = self._generator_states if resume else None
        before = self._progress()
        with seeded(seed, self._device, states):
            try:
                yield
            finally:
                # A call that was refused has trained nothing, and a resumed one goes on from where
                # the last one that did has stopped.
                if self._progress() != before:
                    self._generator_states = generator_states(self._device)
