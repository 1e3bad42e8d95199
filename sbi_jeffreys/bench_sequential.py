"""Several rounds at one observation: each draws theta from the posterior of the last.

``python -m sbi_jeffreys.bench_sequential --tasks two_moons slcp --seeds 0 1`` draws an observation
for every (task, seed), trains every method round by round, on the same simulations in the first
round, and compares the last posterior with the reference posterior at that observation. "jeffreys,
one round" spends all simulations on draws of the prior. A row for each goes to a CSV file, which a
later call completes.
"""

# ruff: noqa: T201
import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from sbi.inference import NPE
from torch import Tensor

from .benchmark.arguments import exit_status, natural, positive
from .benchmark.table import complete
from .metrics import c2st
from .tasks import Task, get_task, list_tasks
from .trainer import JeffreysNPE
from .utils.quiet import quiet, silent
from .utils.seeding import derive_seed

__all__ = ["METHODS", "main"]

_ONE_ROUND = "jeffreys, one round"

METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "npe": (NPE, {}),
    "ml": (JeffreysNPE, {"objective": "ml"}),
    "jeffreys": (JeffreysNPE, {}),
    _ONE_ROUND: (JeffreysNPE, {}),
}
"""Trainers, and their arguments, by the name in the table."""

# Samples of posterior and reference that are compared.
_SAMPLES = 2000
# Simulations of a round, of which a tenth is held out.
_FEWEST = 10
# What tells one run from another.
_KEY = ["task", "seed", "method", "num_simulations", "rounds"]


def _one(task_name: str, seed: int, method: str, num: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = get_task(task_name)
    observed = torch.Generator().manual_seed(derive_seed("observation", seed))
    _, x_o = task.simulate(1, generator=observed)
    reference = task.reference_posterior(x_o, _SAMPLES, generator=observed)
    start = time.process_time()
    torch.manual_seed(seed)
    posterior = _posterior(task, x_o, method, _sizes(method, num, rounds), seed)
    seconds = time.process_time() - start
    drawn = posterior.sample((_SAMPLES,), show_progress_bars=False)
    return {
        "task": task_name,
        "seed": seed,
        "method": method,
        "num_simulations": num,
        "rounds": rounds,
        "c2st": c2st(reference, drawn),
        # The flow's part that leaks out of the prior is no part of the posterior.
        "nll": -posterior.log_prob(reference).mean().item(),
        "weight": getattr(posterior.posterior_estimator, "weight", 0.0),
        "seconds": seconds,
    }


def _sizes(method: str, num: int, rounds: int) -> list[int]:
    """Return how many simulations each round has; what cannot be shared goes to the first."""
    if method == _ONE_ROUND:
        rounds = 1
    return [num // rounds + num % rounds, *[num // rounds] * (rounds - 1)]


def _posterior(task: Task, x_o: Tensor, method: str, sizes: list[int], seed: int) -> Any:
    """Return the posterior at an observation (1, *event) after rounds of these sizes."""
    # Before there is a trainer, which may draw from the prior for its own ends.
    posterior, theta = None, task.prior.sample((sizes[0],))
    trainer_class, arguments = METHODS[method]
    if trainer_class is JeffreysNPE:
        arguments = arguments | {"seed": seed}
    trainer = trainer_class(task.prior, **silent(), **arguments)
    simulated = torch.Generator().manual_seed(derive_seed("simulations", seed))
    for size in sizes:
        if posterior is not None:
            theta = posterior.sample((size,), show_progress_bars=False)
        x = task.simulator(theta, generator=simulated)
        with quiet():
            trainer.append_simulations(theta, x, proposal=posterior).train()
            posterior = trainer.build_posterior().set_default_x(x_o)
    return posterior


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['task']:24s} {row['seed']:4d} {row['method']:20s} C2ST {row['c2st']:.3f} "
        f"NLL {row['nll']:8.3f} {row['seconds']:7.1f} s"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the methods asked for and print their means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list_tasks(), default=["slcp", "two_moons"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1])
    parser.add_argument(
        "--num-simulations", type=positive, default=1000, help="of all rounds together"
    )
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--jobs", type=positive, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/bench-sequential.csv"))
    options = parser.parse_args(arguments)
    if options.num_simulations < _FEWEST * options.rounds:
        parser.error(
            f"--num-simulations {options.num_simulations} in --rounds {options.rounds}: each needs "
            f"{_FEWEST} at least"
        )
    jobs = [
        (task, seed, method, options.num_simulations, options.rounds)
        for task in options.tasks
        for seed in options.seeds
        for method in options.methods
    ]
    rows = complete(options.out, _KEY, jobs, _one, options.jobs, _show)
    for value in ("c2st", "nll", "seconds"):
        table = rows.pivot_table(index="method", columns="task", values=value, sort=False)
        print(f"\n{value}\n{table.round(3).to_string()}")


if __name__ == "__main__":
    sys.exit(exit_status("bench_sequential", main))
