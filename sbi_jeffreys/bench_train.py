"""What training costs: seconds per epoch, seconds to the end and memory, against sbi.

Methods take turns, a few epochs at a time, so that a machine that slows down slows all of them.
"""

# ruff: noqa: T201
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sbi.inference import NPE
from sbi.neural_nets.estimators.zuko_flow import ZukoFlow
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import Distribution

from .benchmark.machine import peak_memory_mb
from .features.columns import features_of
from .flows import DEFAULT_FLOW, NUM_BINS, plain_flow
from .inputs.priors import moved
from .tasks import get_task
from .trainer import JeffreysNPE
from .training.graphs import nothing_recorded
from .training.split import check_enough
from .utils.quiet import quiet, silent

__all__ = ["METHODS", "run_bench"]

# Turns that each method takes, epochs in a turn, at least and at most, and simulations that they
# see: the first steps of a turn are taken as they are, later ones are recorded.
_TURNS, _FEWEST, _MOST, _SEEN = 3, 5, 60, 60_000
_MEMORY_ROWS, _MEMORY_ROWS_QUICK, _MEMORY_DIM = 100_000, 1000, 10


def _same_flow(prior: Distribution) -> Callable[[Tensor, Tensor], ZukoFlow]:
    """Return a builder of the flow of `JeffreysNPE`, evaluated by zuko alone."""

    def build(theta: Tensor, x: Tensor) -> ZukoFlow:
        embedding = nn.Sequential(features_of(theta, x), nn.Flatten())
        flow = plain_flow(
            theta,
            embedding(x),
            x.shape[-1],
            prior,
            hidden_features=[64, 64],
            num_transforms=3,
            num_bins=NUM_BINS,
        )
        return ZukoFlow(flow, embedding, theta[0].shape, x[0].shape)

    return build


def _options(device: str) -> dict[str, Any]:
    return {"device": device} | silent()


def _sbi(prior: Distribution, device: str, density_estimator: Any) -> Any:
    return NPE(prior, density_estimator, **_options(device))


def _ours(
    prior: Distribution, device: str, objective: str, density_estimator: str = DEFAULT_FLOW
) -> Any:
    return JeffreysNPE(prior, density_estimator, objective=objective, **_options(device))


METHODS: dict[str, Callable[[Distribution, str], Any]] = {
    "sbi NPE, maf": lambda prior, device: _sbi(prior, device, "maf"),
    "sbi NPE, zuko_nsf": lambda prior, device: _sbi(prior, device, "zuko_nsf"),
    "sbi NPE, our flow": lambda prior, device: _sbi(prior, device, _same_flow(prior)),
    "JeffreysNPE, ml, zuko_nsf": lambda prior, device: _ours(prior, device, "ml", "zuko_nsf"),
    "JeffreysNPE, ml": lambda prior, device: _ours(prior, device, "ml"),
    "JeffreysNPE": lambda prior, device: _ours(prior, device, "dual"),
    "JeffreysNPE, ml, nothing recorded": lambda prior, device: _ours(prior, device, "ml"),
    "JeffreysNPE, nothing recorded": lambda prior, device: _ours(prior, device, "dual"),
}
"""Trainers by the name in the table, from a prior on a device, and the device."""


def run_bench(
    out: Path,
    tasks: Sequence[str],
    num_simulations: Sequence[int],
    *,
    seed: int = 0,
    quick: bool = False,
    device: str = "cpu",
) -> pd.DataFrame:
    """Time all methods, print a table with ratios and write `time.csv` and `memory.csv`.

    Args:
        out: Folder to write to; it is made if it is missing.
        tasks: Names of tasks.
        num_simulations: Numbers of simulations.
        seed: Seed of simulations and trainings.
        quick: Leave out the trainings to the end, and measure memory on little data.
        device: What to train on, with all simulations there from the start; off the CPU, memory is
            not measured.

    Returns:
        The table, a row per task, number of simulations and method.

    Raises:
        ValueError: If a task is unknown, the simulations are too few, or there is no such device.
        OSError: If the folder cannot be written to.
    """
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(
            f"device must be 'cpu' or, where torch sees a GPU, 'cuda', got {device!r}."
        )
    for num in num_simulations:
        check_enough(num, 0.1)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = []
    for task in tasks:
        for n in num_simulations:
            rows += _time_methods(task, n, seed=seed, quick=quick, device=device)
            # After every block: what has been measured survives an interruption.
            pd.DataFrame(rows).to_csv(out / "time.csv", index=False)
    table = pd.DataFrame(rows)
    print(f"\n{table.to_string(index=False, float_format='{:.3g}'.format, na_rep='')}")
    print(f"\n{_ratios(table).to_string(index=False, float_format='{:.2f}'.format)}")
    if device == "cpu":
        _measure_memory(out, _MEMORY_ROWS_QUICK if quick else _MEMORY_ROWS)
    print(f"\nWritten to {out}/.")
    return table


def _time_methods(
    task: str, n: int, *, seed: int, quick: bool, device: str
) -> list[dict[str, Any]]:
    epochs: dict[str, list[float]] = {name: [] for name in METHODS}
    num_epochs = max(_FEWEST, min(_MOST, _SEEN // n))
    for turn in range(_TURNS):
        for name in METHODS:
            summary, _ = _train(task, n, name, seed + turn, device, max_num_epochs=num_epochs)
            epochs[name] += summary["epoch_durations_sec"][1:]
            print(f"{task}, n = {n}, turn {turn + 1} of {_TURNS}: {name}", flush=True)
    rows = []
    for name in METHODS:
        row = {"task": task, "n": n, "method": name}
        row["seconds_per_epoch"] = statistics.median(epochs[name])
        if not quick:
            summary, row["seconds_to_the_end"] = _train(task, n, name, seed, device)
            row["epochs"] = summary["epochs_trained"][-1]
            # Later steps of JeffreysNPE cost less: the first epochs do not tell.
            row["seconds_per_epoch_to_the_end"] = statistics.mean(summary["epoch_durations_sec"])
            row["best_validation_loss"] = summary["best_validation_loss"][-1]
            print(f"{task}, n = {n}, to the end: {name}", flush=True)
        rows.append(row)
    return rows


def _train(
    task_name: str, n: int, method: str, seed: int, device: str, **kwargs: int
) -> tuple[dict[str, list[Any]], float]:
    """Return the record of a training and its seconds, simulations not counted."""
    task = get_task(task_name)
    theta, x = task.simulate(n, generator=torch.Generator().manual_seed(seed))
    theta, x = theta.to(device), x.to(device)
    torch.manual_seed(seed)
    trainer = METHODS[method](moved(task.prior, device), device)
    as_it_is = nothing_recorded() if method.endswith("nothing recorded") else nullcontext()
    start = time.perf_counter()
    with as_it_is, quiet(), warnings.catch_warnings():
        # sbi remarks on short runs, which are meant to be short.
        warnings.simplefilter("ignore")
        trainer.append_simulations(theta, x).train(**kwargs)
    return trainer.summary, time.perf_counter() - start


def _ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Return the ratios of interest, of every column of seconds."""
    columns = [column for column in table.columns if column.startswith("seconds")]
    wide = table.pivot(index=["task", "n"], columns="method", values=columns)
    ratios = {}
    for column in columns:
        seconds = wide[column]
        what = column.removeprefix("seconds_").replace("_", " ")
        ratios[f"ml / sbi, our flow ({what})"] = (
            seconds["JeffreysNPE, ml"] / seconds["sbi NPE, our flow"]
        )
        ratios[f"ml / sbi, zuko_nsf ({what})"] = (
            seconds["JeffreysNPE, ml, zuko_nsf"] / seconds["sbi NPE, zuko_nsf"]
        )
        ratios[f"JeffreysNPE / ml ({what})"] = seconds["JeffreysNPE"] / seconds["JeffreysNPE, ml"]
        ratios[f"JeffreysNPE / sbi, maf ({what})"] = (
            seconds["JeffreysNPE"] / seconds["sbi NPE, maf"]
        )
        for name in ("JeffreysNPE, ml", "JeffreysNPE"):
            ratios[f"{name} / nothing recorded ({what})"] = (
                seconds[name] / seconds[f"{name}, nothing recorded"]
            )
    return pd.DataFrame(ratios).reset_index()


# Memory: each method in a process of its own, since a peak cannot be forgotten.


def _measure_memory(out: Path, n: int) -> None:
    """Print a table of all methods, and write `memory.csv`."""
    memory = pd.DataFrame([{"method": name, "megabytes": _memory(name, n)} for name in METHODS])
    memory.to_csv(out / "memory.csv", index=False)
    print(
        f"\nPeak memory of one epoch at n = {n}, d = {_MEMORY_DIM}, above what the "
        f"imports and the data take:\n{memory.to_string(index=False, float_format='{:.0f}'.format)}"
    )


def _memory(method: str, n: int) -> float:
    """Return the peak memory of a training in MB, without imports and data."""
    command = [sys.executable, "-c", f"from {__name__} import _print_memory; _print_memory()"]
    done = subprocess.run([*command, method, str(n)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _print_memory() -> None:
    torch.set_num_threads(1)
    before = peak_memory_mb()
    method, n = sys.argv[1:]
    theta = 2 * torch.rand(int(n), _MEMORY_DIM) - 1
    x = theta + torch.randn(int(n), _MEMORY_DIM)
    prior = BoxUniform(-torch.ones(_MEMORY_DIM), torch.ones(_MEMORY_DIM))
    trainer = METHODS[method](prior, "cpu")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.append_simulations(theta, x).train(max_num_epochs=1)
    data = (theta.nbytes + x.nbytes) / 1e6
    print(json.dumps(peak_memory_mb() - before - data))
