"""The demo: sbi's default NPE, plain maximum likelihood and `JeffreysNPE`, side by side.

All three see the same simulations. They are judged on fresh simulations (held-out NLL) and against
the exact posterior at published observations (C2ST).
"""

# ruff: noqa: T201
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from joblib import Parallel, delayed
from sbi.inference import NPE
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from .metrics import c2st
from .plotting import plot_training
from .posterior_plots import plot_posteriors
from .tasks import Task, get_task
from .trainer import JeffreysNPE
from .utils.quiet import quiet, silent

__all__ = ["METHODS", "Sizes", "run_demo"]


class Sizes(NamedTuple):
    """How much of everything: what a run costs and how exact its numbers are."""

    num_test: int = 2000
    observations: tuple[int, ...] = (1, 2, 3)
    num_samples: int = 2000
    max_num_epochs: int = 2**31 - 1


QUICK = Sizes(num_test=200, observations=(1,), num_samples=200, max_num_epochs=2)


def _sbi(prior: Distribution, seed: int) -> Any:
    return NPE(prior, **silent())


def _maximum_likelihood(prior: Distribution, seed: int) -> Any:
    return JeffreysNPE(prior, objective="ml", seed=seed, **silent())


def _jeffreys(prior: Distribution, seed: int) -> Any:
    return JeffreysNPE(prior, seed=seed, **silent())


METHODS: dict[str, Callable[[Distribution, int], Any]] = {
    "sbi NPE": _sbi,
    "max. likelihood": _maximum_likelihood,
    "JeffreysNPE": _jeffreys,
}
"""Trainers by the name in the table, from a prior and a seed."""


@dataclass(frozen=True)
class Result:
    """One trained and judged method: a row of the table, and what the figures show."""

    row: dict[str, Any]
    samples: Tensor
    summary: dict[str, list[Any]]


def run_demo(
    out: Path,
    tasks: Sequence[str] = ("two_moons", "slcp"),
    *,
    num_simulations: int = 1000,
    seed: int = 0,
    sizes: Sizes | None = None,
) -> pd.DataFrame:
    """Run the demo: print its table, and write `table.csv` and the figures.

    Args:
        out: Folder to write to; it is made if it is missing.
        tasks: Names of tasks.
        num_simulations: Simulations to train on, per task.
        seed: Seed of simulations, trainings and samples.
        sizes: Sizes of the evaluation.

    Returns:
        The table, a row per task and method.

    Raises:
        ValueError: If a task is unknown or the simulations are too few.
        OSError: If the folder cannot be written to.
    """
    sizes = Sizes() if sizes is None else sizes
    tasks = list(dict.fromkeys(tasks))
    for name in tasks:
        get_task(name)
    # Before anything is computed: a folder that cannot be written to should cost no time.
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    processes = min(2, os.cpu_count() or 1)
    print(
        f"{', '.join(tasks)}: {num_simulations} simulations each, {len(METHODS)} methods, "
        f"{processes} at a time on one thread each. Minutes, not seconds."
    )
    # The slowest first, so that no process waits long at the end.
    jobs = [(task, method) for method in reversed(METHODS) for task in reversed(tasks)]
    start = time.perf_counter()
    results = {
        (result.row["task"], result.row["method"]): result
        for result in _progress(
            Parallel(n_jobs=processes, return_as="generator_unordered")(
                delayed(run_method)(task, method, num_simulations, seed, sizes)
                for task, method in jobs
            ),
            len(jobs),
        )
    }
    table = pd.DataFrame([results[task, method].row for task in tasks for method in METHODS])
    table.to_csv(out / "table.csv", index=False)
    for task in tasks:
        _save_figures(out, task, {method: results[task, method] for method in METHODS}, seed, sizes)
    print(f"\n{_format(table)}\n\n{_caption(num_simulations, sizes)}")
    print(f"\n{time.perf_counter() - start:.0f} s. Table and figures are in {out}/.")
    return table


def _progress(results: Iterable[Result], total: int) -> Iterable[Result]:
    # No bar where nobody watches: a log would hold every state of it.
    with tqdm(total=total, desc="trained and judged", disable=None) as bar:
        for result in results:
            row = result.row
            bar.write(
                f"{row['task']:>12}  {row['method']:<16} {row['epochs']:>4} epochs in "
                f"{row['training_seconds']:5.1f} s, held-out NLL {row['nll']:.2f}"
            )
            bar.update()
            yield result


def run_method(
    task_name: str, method: str, num_simulations: int, seed: int, sizes: Sizes
) -> Result:
    """Train and judge one method on one task.

    Args:
        task_name: Name of the task.
        method: A key of :data:`METHODS`.
        num_simulations: Simulations to train on.
        seed: Seed of everything.
        sizes: Sizes of the evaluation.

    Returns:
        The row of the table, samples at the first observation, and the record of the training.
    """
    torch.set_num_threads(1)
    task = get_task(task_name)
    theta, x = task.simulate(num_simulations, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    trainer = METHODS[method](task.prior, seed)
    start = time.perf_counter()
    with quiet(), warnings.catch_warnings():
        # sbi remarks on data that are fine here, and on runs that are meant to be short.
        warnings.simplefilter("ignore")
        trainer.append_simulations(theta, x)
        estimator = trainer.train(max_num_epochs=sizes.max_num_epochs)
    seconds = time.perf_counter() - start
    posterior = trainer.build_posterior()
    nll, error = _held_out_nll(task, estimator, sizes, seed)
    samples, per_second = _sample(task, posterior, sizes)
    distances = [
        c2st(task.reference_posterior(i, sizes.num_samples, generator=_generator(seed, i)), found)
        for i, found in samples.items()
    ]
    row = {
        "task": task_name,
        "method": method,
        "nll": nll,
        "nll_standard_error": error,
        "c2st": sum(distances) / len(distances),
        "training_seconds": seconds,
        "epochs": trainer.summary["epochs_trained"][-1],
        "samples_per_second": per_second,
    }
    return Result(row, samples[sizes.observations[0]], trainer.summary)


def _generator(seed: int, observation: int) -> torch.Generator:
    return _generator_of(1000 * seed + observation)


def _generator_of(number: int) -> torch.Generator:
    """Return a generator with this seed, which may be beyond the largest that torch takes."""
    return torch.Generator().manual_seed(number % 2**63)


@torch.no_grad()
def _held_out_nll(task: Task, estimator: Any, sizes: Sizes, seed: int) -> tuple[float, float]:
    """Return the mean of -log p(theta | x) over fresh simulations, and its standard error."""
    theta, x = task.simulate(sizes.num_test, generator=_generator_of(seed + 2**31))
    nll = -estimator.log_prob(theta.unsqueeze(0), x)[0].double()
    return nll.mean().item(), (nll.std() / len(nll) ** 0.5).item()


def _sample(task: Task, posterior: Any, sizes: Sizes) -> tuple[dict[int, Tensor], float]:
    """Return samples by observation, and how many come in a second."""
    shape = torch.Size((sizes.num_samples,))
    start = time.perf_counter()
    samples = {
        i: posterior.sample(shape, x=task.observation(i), show_progress_bars=False)
        for i in sizes.observations
    }
    seconds = time.perf_counter() - start
    return samples, len(samples) * sizes.num_samples / seconds


def _save_figures(
    out: Path, task_name: str, results: dict[str, Result], seed: int, sizes: Sizes
) -> None:
    task, first = get_task(task_name), sizes.observations[0]
    reference = task.reference_posterior(
        first, sizes.num_samples, generator=_generator(seed, first)
    )
    shown = {
        "reference": reference,
        "sbi NPE": results["sbi NPE"].samples,
        "JeffreysNPE": results["JeffreysNPE"].samples,
    }
    figure = plot_posteriors(shown, title=f"{task_name}, observation {first}")
    figure.savefig(out / f"{task_name}_posterior.png", dpi=150)
    plot_training(results["JeffreysNPE"].summary).savefig(
        out / f"{task_name}_training.png", dpi=150
    )


def _format(table: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "task": table["task"],
            "method": table["method"],
            "held-out NLL": [
                f"{nll:.2f} ± {error:.2f}"
                for nll, error in zip(table["nll"], table["nll_standard_error"], strict=True)
            ],
            "C2ST": table["c2st"].map("{:.3f}".format),
            "training s": table["training_seconds"].map("{:.0f}".format),
            "samples/s": table["samples_per_second"].map("{:,.0f}".format),
        }
    )
    return shown.to_string(index=False)


def _caption(num_simulations: int, sizes: Sizes) -> str:
    n, m = len(sizes.observations), sizes.num_samples
    return (
        f"{num_simulations} simulations to train and validate on. Held-out NLL: mean of "
        f"-log p(theta|x) in nats over {sizes.num_test} fresh\nsimulations ± its standard error, "
        "not corrected for leakage out of the prior; lower is better.\nC2ST against the exact "
        f"posterior: mean over observations {', '.join(map(str, sizes.observations))} of 10, "
        f"2 x {m} samples{'' if n == 1 else ' each'}, multi-layer perceptron;\n0.5 is perfect, 1 "
        "is the worst. One seed."
    )
