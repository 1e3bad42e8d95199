"""The record of a training: one list per quantity, one entry per epoch.

These are the lists of sbi's ``summary``, extended. The keys of sbi keep their meaning, but
for one: ``epochs_trained`` has the epochs of each call of ``train``, also where it resumes, where
sbi has those of the calls before as well. Held-out numbers of the proxy come from importance
sampling at a few x; where an epoch has few steps they are taken every few epochs, and the last look
stands until the next. As long as the flow is far from the proxy (``effective_sample_size`` near
zero) its draws miss most of Z, and the proxy's cross-entropy is too low, by nats; below 0.1
``divergence_proxy`` is NaN.
"""

from collections.abc import Mapping
from typing import Any

from sbi.utils.tracking import TensorBoardTracker
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import SummaryWriter

from ..duals import DualState

__all__ = [
    "EPOCH_KEYS",
    "RUN_KEYS",
    "append_epoch",
    "dual_entries",
    "new_record",
    "report_epoch",
    "report_run",
]

EPOCH_KEYS = (
    "training_loss",  # flow's cross-entropy on the training simulations, nats
    "validation_loss",  # flow's cross-entropy on the held-out simulations, nats
    "validation_loss_bounded",  # the same, outliers bounded: what early stopping goes by
    "validation_loss_proxy",  # proxy's; see the note on looks, nats
    "divergence_forward",  # D1: held-out cross-entropy of the flow less the entropy estimate
    "divergence_reverse",  # D2: estimate of KL(flow || proxy), biased low, mean over batches
    "divergence_proxy",  # D3: held-out cross-entropy of the proxy less the entropy estimate
    "multiplier_forward",
    "multiplier_reverse",
    "multiplier_proxy",
    "slack_forward",
    "slack_reverse",
    "slack_proxy",
    "log_partition_mean",  # log Z over held-out x, nats; its mean is moved to zero after the last
    "log_partition_std",
    "effective_sample_size",  # of flow samples reweighted to the proxy, fraction of the draws
    "learning_rate_flow",
    "learning_rate_proxy",
    "epoch_durations_sec",
)
"""Lists with one entry per epoch, over all calls of ``train``."""

RUN_KEYS = ("epochs_trained", "best_validation_loss")
"""Lists with one entry per call of ``train``; ``JeffreysNPE`` has ``pool_weight`` beside these, the
weight of the proxy in the pool."""

_DIVERGENCES = ("forward", "reverse", "proxy")


def new_record() -> dict[str, list[Any]]:
    """Return an empty record."""
    return {key: [] for key in (*RUN_KEYS, *EPOCH_KEYS)}


def append_epoch(record: dict[str, list[Any]], values: Mapping[str, float]) -> None:
    """Append one epoch; quantities that were not measured become NaN.

    Args:
        record: Changed in place.
        values: Numbers by key.

    Raises:
        KeyError: If a key is not one of ``EPOCH_KEYS``.
    """
    unknown = set(values) - set(EPOCH_KEYS)
    if unknown:
        raise KeyError(f"{sorted(unknown)} are not quantities of the record.")
    for key in EPOCH_KEYS:
        record[key].append(float(values.get(key, float("nan"))))


def report_epoch(
    record: dict[str, list[Any]], tracker: Any, bar: Any, epoch: Mapping[str, float]
) -> None:
    """Tell the record, a tracker of sbi's and a progress bar of tqdm's of an epoch.

    Args:
        record: Changed in place.
        tracker: Takes the numbers as they are.
        bar: Moves by one.
        epoch: Numbers by key.

    Raises:
        KeyError: If a key is not one of ``EPOCH_KEYS``; all that the tracker raises.
    """
    append_epoch(record, epoch)
    _tell(tracker, epoch, len(record["training_loss"]) - 1)
    multipliers = [epoch[f"multiplier_{name}"] for name in _DIVERGENCES]
    bar.set_postfix(
        {
            "held-out NLL": f"{epoch['validation_loss']:.3f}",
            "multipliers": " ".join(f"{value:.2f}" for value in multipliers),
        }
    )
    bar.update()


def _tell(tracker: Any, metrics: Mapping[str, float], step: int) -> None:
    """Tell a tracker of sbi's some numbers."""
    writer = getattr(tracker, "_writer", None)
    if type(tracker) is not TensorBoardTracker or type(writer) is not SummaryWriter:
        tracker.log_metrics(metrics, step=step)
        return
    # sbi's default writes an event for each number, through a queue of ten, and for epochs of one
    # step that is a tenth of the training. One event may have many.
    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    writer._get_file_writer().add_summary(Summary(value=values), step)


def report_run(
    record: dict[str, list[Any]], tracker: Any, step: int, values: Mapping[str, float]
) -> None:
    """Tell the record and a tracker of sbi's how a call of ``train`` has ended.

    Args:
        record: Changed in place.
        tracker: Flushed.
        step: Number of the call's round, from 1 on.
        values: Numbers by key: those of ``RUN_KEYS``, and others of which the record has lists.
    """
    for key, value in values.items():
        record[key].append(value)
    for key, value in values.items():
        tracker.log_metric(key, value, step=step)
    tracker.flush()


def dual_entries(dual: DualState, stiffness: float = 1.0) -> dict[str, float]:
    """Return the multipliers and slacks of a dual problem by their keys in the record.

    Args:
        dual: What the dual holds.
        stiffness: Factor by which D2 was multiplied before the dual saw it; so is its slack.
    """
    slacks = dual.slacks / dual.slacks.new_tensor([1.0, stiffness, 1.0])
    return {
        f"{kind}_{name}": value
        for kind, values in (("multiplier", dual.multipliers), ("slack", slacks))
        for name, value in zip(_DIVERGENCES, values.tolist(), strict=True)
    }
