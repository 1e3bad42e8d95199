"""The record of a training: a list per quantity, an entry per epoch."""

import math

import pytest
import torch
from sbi.utils.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_jeffreys.duals import DualState
from sbi_jeffreys.training.record import (
    EPOCH_KEYS,
    RUN_KEYS,
    append_epoch,
    dual_entries,
    new_record,
    report_epoch,
    report_run,
)


def test_new_record_is_empty_and_its_own():
    record = new_record()
    assert set(record) == {*EPOCH_KEYS, *RUN_KEYS}
    assert all(values == [] for values in record.values())
    record["training_loss"].append(1.0)
    assert new_record()["training_loss"] == []
    # One list for each: no key shares its list with another.
    assert len({id(values) for values in record.values()}) == len(record)


def test_keys_are_unique():
    assert len({*EPOCH_KEYS, *RUN_KEYS}) == len(EPOCH_KEYS) + len(RUN_KEYS)


def test_every_epoch_adds_one_entry_to_every_list():
    record = new_record()
    append_epoch(record, {"training_loss": 2.0, "multiplier_reverse": 1})
    append_epoch(record, dict.fromkeys(EPOCH_KEYS, 3.0))
    for key in EPOCH_KEYS:
        assert len(record[key]) == 2
        assert record[key][1] == 3.0
        assert all(isinstance(value, float) for value in record[key])
    assert record["training_loss"][0] == 2.0
    assert record["multiplier_reverse"][0] == 1.0
    assert math.isnan(record["validation_loss"][0])
    assert all(record[key] == [] for key in RUN_KEYS)


@pytest.mark.parametrize("key", ["loss", "epochs_trained", "best_validation_loss", ""])
def test_unknown_quantities_are_refused_and_nothing_is_changed(key):
    record = new_record()
    with pytest.raises(KeyError, match=f"'{key}'"):
        append_epoch(record, {"training_loss": 1.0, key: 2.0})
    assert record == new_record()


class Told:
    """Tracker and progress bar that keep what they are told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_an_epoch_is_told_to_record_tracker_and_bar():
    record, tracker, bar = new_record(), Told(), Told()
    epoch = {f"multiplier_{name}": 1.0 for name in ("forward", "reverse", "proxy")}
    epoch["validation_loss"] = 0.12345
    for step in range(2):
        report_epoch(record, tracker, bar, epoch)
        assert tracker.calls[step] == ("log_metrics", (epoch,), {"step": step})
    assert record["validation_loss"] == [0.12345, 0.12345]
    shown = {"held-out NLL": "0.123", "multipliers": "1.00 1.00 1.00"}
    assert bar.calls == 2 * [("set_postfix", (shown,), {}), ("update", (), {})]


def test_tensorboard_has_the_curves_that_sbis_tracker_would_write(tmp_path):
    multipliers = {f"multiplier_{name}": 1.0 for name in ("forward", "reverse", "proxy")}
    epochs = [multipliers | {"validation_loss": loss} for loss in (0.5, math.nan, -2.5)]
    record, found = new_record(), []
    for name in ("ours", "sbis"):
        tracker = TensorBoardTracker(SummaryWriter(tmp_path / name))
        for step, epoch in enumerate(epochs):
            if name == "ours":
                report_epoch(record, tracker, Told(), epoch)
            else:
                tracker.log_metrics(epoch, step=step)
        tracker.flush()
        read = EventAccumulator(str(tmp_path / name)).Reload()
        curves = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
        found.append({tag: [(e.step, str(e.value)) for e in c] for tag, c in curves.items()})
    assert found[0] == found[1]
    assert [value for _, value in found[0]["validation_loss"]] == ["0.5", "nan", "-2.5"]


def test_the_end_of_a_call_is_told_to_record_and_tracker():
    record, tracker = new_record(), Told()
    report_run(record, tracker, 3, {"epochs_trained": 7, "best_validation_loss": 0.5})
    assert record["epochs_trained"] == [7]
    assert record["best_validation_loss"] == [0.5]
    assert tracker.calls == [
        ("log_metric", ("epochs_trained", 7), {"step": 3}),
        ("log_metric", ("best_validation_loss", 0.5), {"step": 3}),
        ("flush", (), {}),
    ]


def test_multipliers_and_slacks_have_their_names_and_units():
    state = DualState(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3]))
    found = dual_entries(state, stiffness=0.1)
    names = ("forward", "reverse", "proxy")
    assert [found[f"multiplier_{name}"] for name in names] == [1.0, 2.0, 3.0]
    torch.testing.assert_close(
        torch.tensor([found[f"slack_{name}"] for name in names]), torch.tensor([0.1, 2.0, 0.3])
    )
