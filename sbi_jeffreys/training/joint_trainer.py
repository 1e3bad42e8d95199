"""What sbi's trainer calls: what was built is trained, once more if need be, and pickled."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import le
from typing import Any

from sbi.inference.posteriors import DirectPosterior
from sbi.inference.trainers._contracts import LossArgs, TrainConfig
from sbi.utils import RestrictedPrior
from torch import Tensor
from tqdm.auto import tqdm

from ..draws import Draws
from ..estimator import JeffreysEstimator
from ..flows import flow_builder
from ..inputs.priors import proper
from ..likelihood.base import Likelihood
from ..posterior import without_leakage
from ..proxy import proxy_builder
from ..utils.checks import check_atomic
from ..utils.seeding import forked, generator_states
from ..utils.warn import warn
from .batches import ones
from .building import Building
from .call import Call
from .embedding_first import learn_embedding
from .first_steps import default_rates
from .held_out import center_partition
from .likelihood_form import ROWS_TO_FIT, ROWS_TO_JUDGE, Fitted, take_fittest_form
from .record import report_epoch, report_run
from .run import begin, run
from .second_proxy import is_better, is_rejected, likelihood_is_doubtful
from .steps import Settings
from .training import Training

__all__ = ["JointTrainer"]


# What a call sets before anything is trained. The split is of a training, which may be resumed.
_OF_A_CALL = (
    "_neural_net",
    "_validation_data",
    "train_indices",
    "val_indices",
    "_split",
    "_rows",
    "_fitted",
    "_screened",
    "_embedding",
)


class JointTrainer(Building):
    """The part of :class:`~sbi_jeffreys.trainer.JeffreysNPE` that trains.

    Attributes that have no value here are set by that class.
    """

    _draws: Draws
    _settings: dict[str, Any]

    _generator_states: dict[str, Any] | None = None
    _training: Training | None = None
    # Rates, of flow and proxy, that have once been found too high.
    _too_high = (float("inf"), float("inf"))

    def _progress(self) -> tuple[int, int]:
        """Return what tells whether a training has begun or gone on: which one, and its steps."""
        training = self._training
        return id(training), 0 if training is None else training.steps

    @contextlib.contextmanager
    def _unchanged_unless_begun(self) -> Iterator[None]:
        """Put back what an error, or Ctrl-C, has left that came before the first step."""
        progress = self._progress()
        before = {name: getattr(self, name) for name in _OF_A_CALL if hasattr(self, name)}
        proxy = None if self._neural_net is None else self._neural_net.proxy
        network = None if proxy is None else proxy.network
        try:
            yield
        except BaseException:
            if self._progress() == progress:
                for name in _OF_A_CALL:
                    self.__dict__.pop(name, None)
                self.__dict__.update(before)
                if proxy is not None and network is not None:
                    proxy.network = network
                if self._embedding is not None:
                    # It is the user's module, which another may have been learnt in since.
                    self._embedding.put_to_rest(self._neural_net.flow)
                    self._embedding.release(self._neural_net.flow)
                if self._neural_net is not None:
                    # What is fitted is fitted on the CPU.
                    self._neural_net.to(self._device).eval()
            raise

    @contextlib.contextmanager
    def _embedding_released(self) -> Iterator[None]:
        """Leave an embedding that rests in the joint training, in the end, as it came."""
        try:
            yield
        finally:
            if self._embedding is not None:
                self._embedding.release(getattr(self._neural_net, "flow", self._neural_net))

    def _run_training_loop(
        self,
        train_loader: Any,
        val_loader: Any,
        train_config: TrainConfig,
        loss_args: LossArgs | None = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> JeffreysEstimator:
        """Run the joint training in place of sbi's loop; once more if its proxy is doubtful."""
        call = Call.of(train_loader, val_loader, train_config, loss_args)
        call = call.with_checked_kernel(self._device)
        recorded = len(self._summary["training_loss"])
        if self._begins_first_round:
            # It is looked at anew.
            self._too_high = JointTrainer._too_high
        if self._learns_embedding_first(call):
            self._learn_embedding(call)
        training = self._begin(call, self._choose_form(call))
        self._training = training
        try:
            self._run(training, call)
            if self._doubts_proxy(training, call):
                self._try_pairs(training, call)
        finally:
            # Also on Ctrl-C: a usable estimator, and a trainer that can resume.
            assert self._training is not None
            self._finish(self._training, recorded, train_config.show_train_summary)
        training = self._training
        if not (training.diverged or training.converged):
            # It begins as sbi's does, for whoever filters that.
            warn(
                f"Maximum number of epochs `max_num_epochs={train_config.max_num_epochs}` reached "
                "before training had converged: raise it, or go on with resume_training=True and "
                "more epochs in all."
            )
        with forked(self._device):
            center_partition(training.estimator, call.data, call.held_out, self._device)
        return training.estimator

    def _learns_embedding_first(self, call: Call) -> bool:
        """Whether there is an embedding to be learnt beside a flow that starts anyhow."""
        estimator, first = self._neural_net, self._round == 0 and not call.config.resume_training
        joint = estimator.proxy is not None
        return estimator.learns_embedding and joint and first and self._starts_anyhow

    def _learn_embedding(self, call: Call) -> None:
        """Learn the embedding, and build flow and proxy anew upon it."""
        most = call.config.max_num_epochs
        with tqdm(disable=not self._show_progress_bars, desc="Embedding", unit="epoch") as bar:
            self._embedding = learn_embedding(
                self._neural_net.flow,
                self._rows_for_scale(0),
                call.data,
                call.held_out,
                self._settings_for(call.config),
                call.kernel,
                lambda _: bar.update(),
                max_num_epochs=most,
            )
        self._build(True, 0, self._build_proxy, self._spec)

    @property
    def _begins_first_round(self) -> bool:
        """Whether a first few steps can tell what learning rates do."""
        return self._simple_start and self._round == 0

    def _begin(self, call: Call, fitted: Sequence[Likelihood] = ()) -> Training:
        """Return the training to run, new or resumed, after a first look at held-out data."""
        training = self._prepare(call, fitted)
        asked, most = training.settings, call.config.max_num_epochs
        if begin(training, call.data, call.held_out, max_num_epochs=most):
            self._too_high = (asked.learning_rate, asked.proxy_learning_rate)
        return training

    def _run(self, training: Training, call: Call) -> None:
        """Train to the end, in sight of the user."""
        most = call.config.max_num_epochs
        with tqdm(disable=not self._show_progress_bars, desc="JeffreysNPE", unit="epoch") as bar:
            after_epoch = partial(report_epoch, self._summary, self._tracker, bar)
            run(training, call.data, call.held_out, after_epoch, max_num_epochs=most)

    def _choose_form(self, call: Call) -> Sequence[Likelihood]:
        """Give the default likelihood the form that held-out data prefer, where there is new data.

        Pairs are what it needs, wherever their theta come from, and the form that is best for the
        first few hundred is seldom so for all.

        Returns:
            All that were fitted to these simulations; none where none was.
        """
        estimator = self._neural_net
        of = self._rows, self._split.train
        default = self._spec["proxy"] == "likelihood" and estimator.likelihood is not None
        # In a space that is still to be learnt no form is better than another; and a form that is
        # better for all x alike may not be so for those that a kernel chooses.
        plain = not (call.weighs or estimator.learns_embedding)
        if not (self._fitted.is_of(*of) or call.config.resume_training):
            # What is trained now is not to make way in a later call for these simulations.
            self._fitted = Fitted(*of, self._all_forms(call) if default and plain else ())
        return self._fitted.likelihoods if default and plain else ()

    def _all_forms(self, call: Call) -> Sequence[Likelihood]:
        """Give the likelihood the fittest form, and return all that were fitted."""
        rows = call.data.head(ROWS_TO_FIT, "cpu")
        judges = call.held_out.head(ROWS_TO_JUDGE, "cpu")
        settings = self._settings_for(call.config)
        choices = {"levels": settings.levels, "sharpness": settings.sharpness}
        return take_fittest_form(self._neural_net.to("cpu"), rows, judges, **choices)

    def _doubts_proxy(self, training: Training, call: Call) -> bool:
        """Whether the default proxy was trained to the end, and held-out rows speak against it."""
        ended = training.converged and not (training.diverged or call.config.resume_training)
        # Of an unpickled trainer, what built its flow may be gone.
        ended &= self._build_neural_net is not None
        # Otherwise the critic would have to know of weights, proposals or a moving embedding.
        plain = training.from_prior and not call.weighs and training.patience.trials
        plain &= self._spec["proxy"] == "likelihood" and not training.estimator.learns_embedding
        if not (ended and plain):
            return False
        estimator, reverse = training.estimator, self._summary["divergence_reverse"][-1]
        rows = call.data, call.held_out
        return is_rejected(estimator, reverse, call.held_out) or likelihood_is_doubtful(
            estimator, *rows, self._device
        )

    def _try_pairs(self, first: Training, call: Call) -> None:
        """Train once more, with a proxy of pairs; keep of the two what held-out data prefer."""
        kept = first
        try:
            self._build(True, 0, proxy_builder("mlp"), self._spec | {"proxy": "mlp"})
            second = self._begin(call)
            self._run(second, call)
            if is_better(second.estimator, first.estimator, call.held_out, self._device):
                kept = second
        finally:
            self._neural_net, self._training = kept.estimator, kept

    def _settings_for(self, config: TrainConfig) -> Settings:
        return Settings(
            training_batch_size=config.training_batch_size,
            learning_rate=config.learning_rate,
            stop_after_epochs=config.stop_after_epochs,
            clip_max_norm=config.clip_max_norm,
            device=self._device,
            **self._settings,
        )

    def _prepare(self, call: Call, fitted: Sequence[Likelihood]) -> Training:
        """Return the training to run: a new one, or the last one to resume."""
        estimator, config = self._neural_net, call.config
        estimator.to(self._device)
        settings = self._settings_for(config)
        if all(map(le, self._too_high, (settings.learning_rate, settings.proxy_learning_rate))):
            # One that is resumed keeps its rates, and one that begins has been warned of.
            if not (config.resume_training or self._begins_first_round):
                warn(
                    f"learning_rate={settings.learning_rate:g} was too high in an earlier call: "
                    "training goes on with the defaults. Pass a lower one to choose it yourself.",
                    RuntimeWarning,
                )
            settings = default_rates(settings)
        atomic = self._round > 0 and not call.force_first_round_loss
        hook = self._atomic_loss if atomic else None
        if atomic:
            others = self._validation_data
            num_held_out = len(self.val_indices if others is None else others[0])
            check_atomic(config.training_batch_size, num_held_out)
        if config.resume_training and self._training is not None:
            return self._training.resumed(settings, call.kernel, hook)
        restricted = any(isinstance(p, RestrictedPrior) for p in self._proposal_roundwise)
        draws = replace(self._draws, simulated=0.0) if proper(self._prior) is None else self._draws
        return Training(
            estimator,
            self._weighting,
            draws,
            settings,
            call.kernel,
            hook,
            from_prior=self._round == 0 and not restricted,
            simple_start=self._simple_start and not estimator.learns_embedding,
            fitted=fitted if settings.stack else (),
        )

    def _atomic_loss(self, theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
        """Return sbi's loss for parameters that come from a proposal, shape (B,)."""
        return -self._log_prob_proposal_posterior_atomic(theta, x, masks)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled; sbi warns of what is lost, builders among it."""
        state = super().__getstate__() | {"_build_proxy": None}
        if self._training is not None:
            if self._training.running:
                # A tracker that keeps copies: they go on from there, as this one does.
                state["_generator_states"] = generator_states(self._device)
            state["_training"] = self._training.stopped()
            # Functions need not be picklable; resuming sets these two anew.
            state["_training"].kernel, state["_training"].forward_loss = ones, None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what was pickled; what was built by name can be built again."""
        super().__setstate__(state)
        name, proxy = self._spec["density_estimator"], self._spec["proxy"]
        if name is not None:
            self._build_neural_net = flow_builder(name, self._prior)
        if proxy is not None:
            self._build_proxy = proxy_builder(proxy)

    def _resolve_estimator(self, estimator: Any) -> tuple[Any, str]:
        """Return the estimator that a posterior is to be built of, and its device."""
        if estimator is None and self._neural_net is None:
            raise RuntimeError(
                "Nothing is trained yet: call train() before build_posterior(), or pass it an "
                "estimator."
            )
        return super()._resolve_estimator(estimator)

    def _create_posterior(
        self,
        estimator: Any,
        prior: Any,
        sample_with: Any,
        device: Any,
        posterior_parameters: Any,
    ) -> Any:
        """Return what ``build_posterior`` asks for; where nothing leaks, nothing is corrected."""
        built = super()._create_posterior(
            estimator, prior, sample_with, device, posterior_parameters
        )
        return without_leakage(built) if isinstance(built, DirectPosterior) else built

    def _finish(self, training: Training, recorded: int, show_summary: bool) -> None:
        """Close the books of this call, before which so many epochs were recorded."""
        training.estimator.eval()
        training.estimator.zero_grad(set_to_none=True)
        self.epoch, self._best_val_loss = training.epoch, training.kept_loss
        values = {
            "epochs_trained": len(self._summary["training_loss"]) - recorded,
            "best_validation_loss": training.kept_loss,
            "pool_weight": training.estimator.weight,
        }
        report_run(self._summary, self._tracker, self._round + 1, values)
        if show_summary:
            tqdm.write(self._describe_round(self._round, self._summary))
