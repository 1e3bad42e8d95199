"""Whether the learning rates are such that the first steps lose nothing that matters.

The default flow starts at the linear posterior in closed form, which four steps at a tolerable rate
move by a few tenths of a nat at most. At ten times the default rates they lose one to ten nats, and
hundreds of steps do not win all of that back (docs/method.md). So a few steps are taken on a copy,
and the rates are lowered, both, until these do no harm.
"""

import copy
from itertools import chain, islice, repeat

import torch
from torch import Tensor

from .batches import Data, LoaderData
from .training import Training, TrainingDiverged

__all__ = ["lower_rates"]

_STEPS = 4
# Loss in nats from which on a rate is too high. At the default rates a few steps lose 0.3 at most
# (100 simulations), at three times these 0.4, at ten times 0.7 to 3 on 29 of 30 pairs of task and
# number of simulations.
_TOO_MUCH = 0.6
# Nats by which one held-out row can speak: few rows may be hit by an outlier.
_SAY = 3.0
# Factor on rates that are too high, and how often it is tried.
_LOWER, _TIMES = 0.1, 4


def lower_rates(training: Training, data: Data | LoaderData, held_out: Data | LoaderData) -> None:
    """Lower the learning rates of a training that has not begun, if they are too high.

    Weights, multipliers and random numbers stay as they are.

    Args:
        training: Changed in place, if it starts from a simple model.
        data: Simulations to train on.
        held_out: Simulations to look at.
    """
    if not training.simple_start or training.estimator.proxy is None:
        return
    devices = [] if training.settings.device == "cpu" else [training.settings.device]
    with torch.random.fork_rng(devices=devices):
        first = training.losses(held_out)
        for _ in range(_TIMES):
            change = _after_first_steps(training, data, held_out) - first
            # What is no number is as bad as it can be.
            if change.nan_to_num(_SAY, _SAY, _SAY).clamp(-_SAY, _SAY).mean() <= _TOO_MUCH:
                return
            for optimizer in training.optimizers:
                optimizer.param_groups[0]["lr"] *= _LOWER


def _after_first_steps(
    training: Training, data: Data | LoaderData, held_out: Data | LoaderData
) -> Tensor:
    """Return the held-out losses (n,) that a copy has after its first steps, or infinity."""
    proxy = training.estimator.proxy
    assert proxy is not None
    # The prior is the user's, may be anything, and is only asked.
    trial = copy.deepcopy(training, {id(proxy.base): proxy.base})
    s = training.settings
    epochs = (data.batches(s.training_batch_size, s.device, shuffle=True) for _ in repeat(None))
    trial.estimator.train()
    try:
        for batch in islice(chain.from_iterable(epochs), _STEPS):
            trial.step(*batch)
    except TrainingDiverged:
        return torch.full((), torch.inf)
    with trial.average.in_place():
        return trial.losses(held_out)
