"""Epoch after epoch to the end of a training, and what is said if it diverges on the way."""

import warnings
from collections.abc import Callable

from torch import nn

from .batches import Data, LoaderData
from .descent import TrainingDiverged
from .training import Training

__all__ = ["run_epochs"]


def run_epochs(
    training: Training,
    data: Data | LoaderData,
    held_out: Data | LoaderData,
    after_epoch: Callable[[dict[str, float]], None],
    *,
    max_num_epochs: int,
    outliers_in: str,
    stacklevel: int,
) -> bool:
    """Train until held-out data see no more improvement.

    Args:
        training: Started (:meth:`~sbi_jeffreys.training.Training.start`), or to be resumed.
        data: What to train on.
        held_out: What to look at.
        after_epoch: Takes the record of each epoch.
        max_num_epochs: Largest number of epochs of this call.
        outliers_in: What a user may look for outliers in.
        stacklevel: Frames from here to the caller whom the warning is for, counted as in
            ``warnings.warn``.

    Returns:
        Whether it diverged, of which there is a warning; its best weights are to be put back.

    Raises:
        RuntimeError, ValueError, AssertionError: What an estimator raises of its own while its
            weights are finite; all else that ``after_epoch`` raises.
    """
    last = training.epoch + max_num_epochs
    try:
        while training.epoch < last and not training.converged:
            after_epoch(training.advance(data, held_out))
    except (RuntimeError, ValueError, AssertionError) as error:
        # Some estimators refuse NaN themselves, before the training sees it.
        if not isinstance(error, TrainingDiverged) and _is_finite(training.estimator):
            raise
        warnings.warn(
            f"Training diverged in epoch {training.epoch + 1}: {error} The weights of the best "
            f"epoch (held-out loss {training.best_loss:.3f}) are kept. Lower learning_rate "
            f"(now {training.rates[0]:g}), or look for outliers in {outliers_in}.",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
        return True
    return False


def _is_finite(module: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())
