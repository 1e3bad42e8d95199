"""The models of the experiments: a flow by maximum likelihood, and ours, with the same flow.

Both train for a fixed number of steps and are looked at on test data after every epoch, so that a
figure can compare the last weights with the best ones: "best" means best on test data, which no
early stopping can beat.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..density import STEPS_PER_EPOCH, JeffreysDensity
from .data import Split

__all__ = ["METHODS", "best_and_last", "curve", "density_maps", "train"]

METHODS: dict[str, dict[str, Any]] = {"flow": {"objective": "ml"}, "ours": {}}
"""Arguments of ``JeffreysDensity`` by method."""


def train(
    method: str,
    data: Split,
    *,
    seed: int,
    epochs: int,
    callback: Callable[[JeffreysDensity], None] | None = None,
    **arguments: Any,
) -> JeffreysDensity:
    """Train a density for a number of epochs, without early stopping.

    Args:
        method: "flow" (maximum likelihood) or "ours".
        data: Samples; those to validate on do not influence the training.
        seed: Seed.
        epochs: Epochs of ``STEPS_PER_EPOCH`` steps, somewhat more with many samples.
        callback: Called with the density after every epoch.
        arguments: Of ``JeffreysDensity``, in place of its defaults.
    """
    density = JeffreysDensity(**{**METHODS[method], **arguments}, seed=seed)
    return density.fit(
        data.train,
        data.validation,
        test_data=data.test,
        max_num_epochs=epochs,
        stop_after_epochs=None,
        callback=callback,
    )


def curve(density: JeffreysDensity, **columns: Any) -> pd.DataFrame:
    """Return the record of a training as a table: a row per epoch, with the columns given."""
    record = density.summary
    names = {
        "test_loss": "nll",
        "test_loss_proxy": "nll_proxy",
        "training_loss": "nll_training",
        "log_partition_mean": "log_partition",
        "divergence_reverse": "divergence_reverse",
        "multiplier_forward": "multiplier_forward",
        "multiplier_reverse": "multiplier_reverse",
        "multiplier_proxy": "multiplier_proxy",
    }
    table = pd.DataFrame({new: record[old] for old, new in names.items()}, dtype=float)
    table.insert(0, "step", STEPS_PER_EPOCH * np.arange(1, len(table) + 1))
    for name, value in reversed(columns.items()):
        table.insert(0, name, value)
    return table


def best_and_last(table: pd.DataFrame, by: list[str], column: str = "nll") -> pd.DataFrame:
    """Return the lowest and the last value of a column in every group of rows.

    Args:
        table: Rows in the order of training.
        by: Columns that tell runs apart.
        column: What is minimised.

    Returns:
        A row per group: ``by``, ``best``, ``last`` and ``drift``, their difference. A run that
        ended in NaN has an infinite last value.
    """
    groups = table.groupby(by, sort=False)[column]
    found = pd.DataFrame(
        {
            "best": groups.min(),
            "last": groups.apply(lambda values: values.fillna(np.inf).iloc[-1]),
        }
    )
    return found.assign(drift=found["last"] - found["best"]).reset_index()


@torch.no_grad()
def density_maps(density: JeffreysDensity, points: Tensor) -> dict[str, np.ndarray]:
    """Return the densities of flow and, if there is one, proxy at points of shape (n, d)."""
    maps = {"flow": density.log_prob(points).exp().numpy()}
    if density.has_proxy:
        maps["proxy"] = density.proxy_log_prob(points).exp().numpy()
    return maps
