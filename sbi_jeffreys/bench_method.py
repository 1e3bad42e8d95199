"""What each choice of the method is worth: held-out NLL of variants on the same simulations.

``python -m sbi_jeffreys.bench_method --tasks slcp two_moons --seeds 0 1`` trains every variant on
the same simulations of every (task, seed) and writes one row for each to a CSV file, which a later
call completes instead of repeating. ``--tasks simulators`` takes those of
:mod:`sbi_jeffreys.simulators` in place of the ten tasks. What is printed compares the variants, and
the flow of JeffreysNPE alone, without the pool.
"""

# ruff: noqa: T201
import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.distributions import Distribution

from .benchmark.arguments import exit_status, natural, positive
from .benchmark.report.compare import bootstrap_interval
from .benchmark.table import complete
from .benchmark.variants import VARIANTS
from .diagnostics import diagnose_proxy
from .divergences import log_mean_exp
from .simulators import SIMULATORS
from .tasks import get_task, list_tasks
from .trainer import JeffreysNPE
from .utils.quiet import quiet, silent
from .utils.seeding import derive_seed

__all__ = ["differences", "main"]

# Fresh x at which log Z is estimated, and the draws for each.
_ROWS, _DRAWS = 200, 1000
# What tells one run from another.
_KEY = ["task", "seed", "variant", "num_simulations", "num_test", "noise"]
_DEFAULT, _FLOW_ALONE = "jeffreys", "jeffreys, the flow alone"


def _one(
    task_name: str, seed: int, variant: str, num: int, num_test: int, noise: int
) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = SIMULATORS.get(task_name) or get_task(task_name)
    theta, x = _simulations(task, num, noise, seed)
    theta_test, x_test = _simulations(task, num_test, noise, 10_000 + seed)
    start = time.process_time()
    trainers = list(_trained(task.prior, VARIANTS[variant](task.prior), theta, x, seed))
    seconds = time.process_time() - start
    with torch.no_grad():
        nets = [trainer._neural_net.eval() for trainer in trainers]
        members = [net.log_prob(theta_test.unsqueeze(0), x_test)[0] for net in nets]
    nll = -log_mean_exp(torch.stack(members))
    summary = trainers[0].summary
    losses = summary["validation_loss"]
    row = {
        "task": task_name,
        "seed": seed,
        "variant": variant,
        "num_simulations": num,
        "num_test": num_test,
        "noise": noise,
        "nll": nll.mean().item(),
        "nll_flow": math.nan,
        "weight": getattr(nets[0], "weight", 0.0),
        "proxy": None,
        "seconds": seconds,
        "epochs": summary["epochs_trained"][-1],
        "last_above_best": losses[-1] - min(losses),
        "price": (summary.get("multiplier_reverse") or [math.nan])[-1],
        "log_z_mean": math.nan,
        "log_z_std": math.nan,
    }
    if getattr(nets[0], "proxy", None) is not None:
        flow = nets[0].flow.log_prob(theta_test.unsqueeze(0), x_test)[0]
        row["nll_flow"] = -flow.mean().item()
        row["proxy"] = nets[0].spec["proxy"]
        found = diagnose_proxy(nets[0], theta_test[:_ROWS], x_test[:_ROWS], num_draws=_DRAWS)
        row["log_z_mean"] = found.log_partition.mean().item()
        row["log_z_std"] = found.log_partition.std().item()
    return row


def _simulations(task: Any, num: int, noise: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return theta and x, with so many columns of normal noise behind it."""
    generator = torch.Generator().manual_seed(seed)
    theta, x = task.simulate(num, generator=generator)
    if noise:
        # Simulators seed torch's generator by this one, which would draw the same numbers again.
        generator.manual_seed(derive_seed("noise", seed))
        x = torch.cat((x.flatten(1), torch.randn(num, noise, generator=generator)), dim=1)
    return theta, x


def _trained(
    prior: Distribution, variant: tuple, theta: torch.Tensor, x: torch.Tensor, seed: int
) -> Iterator[Any]:
    """Yield trainers, one for each member of an ensemble, in a deterministic order of seeds."""
    trainer_class, arguments, train = variant
    arguments = dict(arguments)
    # Not arguments of the trainer: nobody but this comparison should want to change them.
    settings, members = arguments.pop("settings", {}), arguments.pop("members", 1)
    times = arguments.pop("times", 1)
    for member in range(members):
        # Members of two seeds must not be the same.
        own = seed + 1000 * member
        if trainer_class is JeffreysNPE:
            arguments["seed"] = own
        new = partial(trainer_class, prior, **silent(), **arguments)
        torch.manual_seed(own)
        with quiet():
            trainer = new()
            if settings:
                trainer._settings |= settings
            trainer.append_simulations(theta, x).train(**train)
            if times > 1:
                # As long again and again, whatever held-out data say.
                num = times * trainer.summary["epochs_trained"][-1]
                trainer = new().append_simulations(theta, x)
                trainer.train(**train | {"max_num_epochs": num, "stop_after_epochs": num})
        yield trainer


def main(arguments: list[str] | None = None) -> None:
    """Run the variants asked for and print their mean held-out NLL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["slcp", "two_moons"],
        help="names of tasks or of simulators; 'simulators' stands for all of these",
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1])
    parser.add_argument("--num-simulations", type=positive, default=1000)
    parser.add_argument("--num-test", type=positive, default=4000)
    parser.add_argument(
        "--noise", type=natural, default=0, help="columns of normal noise to put beside x"
    )
    parser.add_argument("--baseline", default=_DEFAULT, help="variant to compare with")
    parser.add_argument("--jobs", type=positive, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/bench-method.csv"))
    options = parser.parse_args(arguments)
    names = [list(SIMULATORS) if name == "simulators" else [name] for name in options.tasks]
    tasks = list(dict.fromkeys(name for group in names for name in group))
    for what, asked, known in (
        ("tasks", tasks, [*list_tasks(), *SIMULATORS, "simulators"]),
        ("variants", options.variants, VARIANTS),
        ("baselines", [options.baseline], [*options.variants, _FLOW_ALONE, _DEFAULT]),
    ):
        if unknown := [name for name in asked if name not in known]:
            parser.error(f"unknown {what} {unknown}, known are {', '.join(map(repr, known))}")
    jobs = [
        (task, seed, variant, options.num_simulations, options.num_test, options.noise)
        for task in tasks
        for seed in options.seeds
        for variant in options.variants
    ]
    rows = complete(options.out, _KEY, jobs, _one, options.jobs, _show)
    shown = pd.concat([rows, _flows_alone(rows)], ignore_index=True)
    table = shown.pivot_table(index="variant", columns="task", values="nll", sort=False)
    print(table.round(2).to_string())
    if options.baseline in set(shown.variant):
        print(differences(shown, options.baseline).round(2).to_string())


def _show(row: dict[str, Any]) -> None:
    print(f"{row['task']:24s} {row['variant']:30s} {row['nll']:8.3f} {row['seconds']:7.1f} s")


def _flows_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the default again, with the NLL of the flow without the pool."""
    default = rows[rows.variant == _DEFAULT]
    return default.assign(variant=_FLOW_ALONE, nll=default.nll_flow)


def differences(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return how much every variant loses against one, in the mean over tasks.

    Args:
        rows: Columns task, seed, variant and nll (nats), and seconds; one row for each run.
        baseline: Name of a variant.

    Returns:
        By variant: the mean difference in nats, paired by task and seed, with a 95 % bootstrap
        interval over tasks (and their seeds), the worst task and its difference, and the ratio of
        the seconds, median over tasks.
    """
    wide = rows.pivot_table(index=["task", "seed"], columns="variant", values="nll", sort=False)
    seconds = rows.pivot_table(index="task", columns="variant", values="seconds", sort=False)
    found = {}
    for variant in wide.columns.drop(baseline):
        less = (wide[variant] - wide[baseline]).dropna()
        by_task = less.groupby("task")
        interval = bootstrap_interval([group.to_numpy() for _, group in by_task])
        means = by_task.mean()
        found[variant] = {
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "worst": means.max(),
            "where": means.idxmax(),
            "seconds, ratio": (seconds[variant] / seconds[baseline]).median(),
        }
    return pd.DataFrame(found).T.infer_objects()


if __name__ == "__main__":
    sys.exit(exit_status("bench_method", main))
