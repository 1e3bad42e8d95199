"""A run of a training: its start, epoch after epoch to the end, and which weights it leaves."""

from collections.abc import Callable

from torch import nn

from ..estimator import FLOW_ALONE
from ..optim.weights import copy_of_weights
from ..utils.seeding import forked
from ..utils.warn import warn
from .batches import Data, LoaderData
from .descent import TrainingDiverged
from .first_steps import check_rates
from .graphs import StepGraphs
from .held_out import best_pooling
from .training import Training

__all__ = ["begin", "run", "run_epochs"]

# Epochs from which on a run is long enough to record its steps early.
_LONG = 50


def begin(
    training: Training, data: Data | LoaderData, held_out: Data | LoaderData, *, max_num_epochs: int
) -> bool:
    """Look at held-out data, and at what the rates do; the estimator stays as it was.

    Args:
        training: New, or to be resumed.
        data: What to train on.
        held_out: What to look at.
        max_num_epochs: As in :func:`run`.

    Returns:
        Whether the rates were lowered, of which there is a warning
        (:func:`~sbi_jeffreys.training.first_steps.check_rates`).

    Raises:
        ValueError: If the held-out loss is not finite.
    """
    # Where there are prices to try, patience begins after hundreds of steps.
    long = max_num_epochs - training.epoch >= _LONG
    training.graphs.soon = training.patience.trials and long
    if isinstance(held_out, LoaderData):
        training.forget_rows()
    estimator = training.estimator
    # As in the epochs to come, the density is the flow's.
    before, estimator.pooling = estimator.pooling, FLOW_ALONE
    try:
        training.start(
            held_out,
            "; look for NaN and inf in x (exclude_invalid_x=True removes them), and for theta "
            "outside the prior.",
        )
        return training.steps == 0 and check_rates(training, data, held_out)
    finally:
        estimator.pooling = before


def run(
    training: Training,
    data: Data | LoaderData,
    held_out: Data | LoaderData,
    after_epoch: Callable[[dict[str, float]], None],
    *,
    max_num_epochs: int,
) -> None:
    """Train to the end; leave the estimator with the weights to keep, pooled, also on Ctrl-C.

    Args:
        training: That has begun (:func:`begin`).
        data: What to train on.
        held_out: What to look at.
        after_epoch: Takes the record of each epoch.
        max_num_epochs: Largest number of epochs of the training, those before it was resumed
            included.

    Raises:
        RuntimeError, ValueError, AssertionError: What :func:`run_epochs` raises.
    """
    estimator, first = training.estimator, training.epoch
    before = estimator.pooling
    failed, training.diverged = True, False
    try:
        estimator.pooling, training.running = FLOW_ALONE, True
        if training.last_weights is not None:
            # It goes on where it stopped, not from the best.
            estimator.load_state_dict(training.last_weights)
        failed = training.diverged = run_epochs(
            training, data, held_out, after_epoch, max_num_epochs=max_num_epochs, outliers_in="x"
        )
    except KeyboardInterrupt:
        failed = False
        raise
    finally:
        training.running = False
        # On Ctrl-C a GPU may have descended where it was not known yet that there was no ground.
        lost = training.diverged or not _is_finite(estimator)
        training.last_weights = None if lost else copy_of_weights(estimator)
        training.restore_best()
        training.kept_loss = training.best_loss
        if not failed:
            training.kept_loss = _settle(training, held_out)
        elif training.epoch == first:
            estimator.pooling = before


def run_epochs(
    training: Training,
    data: Data | LoaderData,
    held_out: Data | LoaderData,
    after_epoch: Callable[[dict[str, float]], None],
    *,
    max_num_epochs: int,
    outliers_in: str,
) -> bool:
    """Train until held-out data see no more improvement.

    Args:
        training: Started (:meth:`~sbi_jeffreys.training.training.Training.start`), or to be
            resumed.
        data: What to train on.
        held_out: What to look at.
        after_epoch: Takes the record of each epoch.
        max_num_epochs: Largest number of epochs of the training, those before it was resumed
            included.
        outliers_in: What a user may look for outliers in.

    Returns:
        Whether it diverged, of which there is a warning; its best weights are to be put back.

    Raises:
        RuntimeError, ValueError, AssertionError: What an estimator raises of its own while its
            weights are finite; all else that ``after_epoch`` raises.
    """
    try:
        while training.epoch < max_num_epochs and not training.converged:
            after_epoch(training.advance(data, held_out))
    except (RuntimeError, ValueError, AssertionError) as error:
        # Some estimators refuse NaN themselves, before the training sees it.
        if not isinstance(error, TrainingDiverged) and _is_finite(training.estimator):
            raise
        warn(
            f"Training diverged in epoch {training.epoch + 1}: {error} The weights of the best "
            f"epoch (held-out loss {training.best_loss:.3f}) are kept. Lower learning_rate "
            f"(now {training.rates[0]:g}), or look for outliers in {outliers_in}.",
            RuntimeWarning,
        )
        return True
    finally:
        # Their memory is free again; another run may have a kernel that can be recorded.
        training.graphs = StepGraphs()
    return False


def _settle(training: Training, held_out: Data | LoaderData) -> float:
    """Put the weights back that held-out data speak for, and pool; return the flow's loss, nats.

    In later rounds a likelihood has a say, which is the same under all proposals. A proxy of pairs
    knows nothing of what lies between these.
    """
    estimator, device = training.estimator, training.settings.device
    # Draws are none of the training's, which may be resumed.
    with forked(device):
        loss = training.settle(held_out)
        if training.from_prior or estimator.likelihood is not None:
            estimator.pooling = best_pooling(
                estimator,
                held_out,
                device,
                training.kernel,
                training.fitted,
                from_prior=training.from_prior,
            )
    return loss


def _is_finite(module: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())
