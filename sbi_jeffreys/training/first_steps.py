"""Whether learning rates above the defaults are such that the first steps lose what matters.

The default flow starts at the linear posterior in closed form, which four steps at the default
rates move by a few tenths of a nat at most. At ten times these rates they lose one nat or all that
the start explains, and hundreds of steps do not win it back (docs/trials.md). So who asks for
higher rates gets them if a few steps on a copy do no such harm, and the defaults otherwise.
"""

import copy
import math
from dataclasses import replace
from itertools import chain, islice, repeat

from torch import Tensor

from ..utils.seeding import forked
from ..utils.warn import warn
from .batches import Data, LoaderData, ones
from .descent import TrainingDiverged
from .held_out import flow_losses
from .patience import MOST_OF_A_ROW
from .steps import Settings
from .training import Training

__all__ = ["check_rates", "default_rates"]

_STEPS = 4
# Nats lost after any of the steps from which on a rate is too high. Over ten tasks with 100 to
# 10,000 simulations it is 0.2 at most at the default rates, and 1.5 to 3 at ten times these.
_TOO_MUCH = 0.9


def check_rates(training: Training, data: Data | LoaderData, held_out: Data | LoaderData) -> bool:
    """Lower the learning rates of a training that has not begun to the defaults if they do harm.

    Rates up to the defaults are taken as they are, and so are all of a training without a simple
    start to lose, without a proxy, or of a later round. Weights, multipliers and torch's random
    numbers stay as they are.

    Args:
        training: Changed in place.
        data: Simulations to train on.
        held_out: Simulations to look at.

    Returns:
        Whether they were lowered, of which there is a warning.
    """
    asked = training.settings
    lowered = default_rates(asked)
    measurable = training.estimator.proxy is not None and training.forward_loss is None
    if lowered == asked or not (training.simple_start and measurable):
        return False
    lost = _most_lost(training, data, held_out)
    if lost <= _TOO_MUCH:
        return False
    training.settings = lowered
    rates = (lowered.learning_rate, lowered.proxy_learning_rate)
    share = "all" if lost >= MOST_OF_A_ROW else f"{lost:.1f} nats"
    for optimizer, rate in zip(training.optimizers, rates, strict=True):
        optimizer.lr = rate
    warn(
        f"learning_rate={asked.learning_rate:g} with proxy_learning_rate="
        f"{asked.proxy_learning_rate:g} is too high: a few steps lose {share} of what the start "
        f"explains. Training goes on with {rates[0]:g} and {rates[1]:g}; pass lower rates to "
        "choose them yourself.",
        RuntimeWarning,
    )
    return True


def default_rates(settings: Settings) -> Settings:
    """Return settings whose learning rates are no higher than the defaults."""
    return replace(
        settings,
        learning_rate=min(settings.learning_rate, Settings.learning_rate),
        proxy_learning_rate=min(settings.proxy_learning_rate, Settings.proxy_learning_rate),
    )


def _most_lost(training: Training, data: Data | LoaderData, held_out: Data | LoaderData) -> float:
    """Return what a copy has lost on held-out rows after the worst of its first steps, nats."""
    proxy, s = training.estimator.proxy, training.settings
    assert proxy is not None
    with forked(s.device):
        # Prior and kernel are the user's, may be anything, and are only asked.
        shared = {id(own): own for own in (proxy.base, training.kernel)}
        trial = copy.deepcopy(training, shared)
        # Too few steps to be worth recording.
        trial.graphs.possible = False
        first, most = _losses(trial, held_out), -math.inf
        epochs = (data.batches(s.training_batch_size, s.device, shuffle=True) for _ in repeat(None))
        try:
            for batch in islice(chain.from_iterable(epochs), _STEPS):
                trial.estimator.train()
                trial.step(*batch)
                with trial.average.in_place():
                    change = _losses(trial, held_out) - first
                # NaN is as bad as it can be.
                change = change.nan_to_num(MOST_OF_A_ROW, MOST_OF_A_ROW, MOST_OF_A_ROW).clamp(
                    -MOST_OF_A_ROW, MOST_OF_A_ROW
                )
                most = max(most, change.mean().item())
        except TrainingDiverged:
            return MOST_OF_A_ROW
        return most


def _losses(training: Training, held_out: Data | LoaderData) -> Tensor:
    """Return the flow's held-out losses in nats, shape (n,), whatever a kernel makes of them."""
    return flow_losses(training.estimator, held_out, training.settings.device, ones)[0]
