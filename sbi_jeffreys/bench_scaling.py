"""How training grows: with simulations, with parameters, with the size of x.

``python -m sbi_jeffreys.bench_scaling`` trains JeffreysNPE for a few epochs on linear Gaussian
simulations of growing number and size, each case in a process of its own, one after the other, and
writes seconds and memory to a CSV file.
"""

# ruff: noqa: T201
import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from sbi.utils import BoxUniform
from torch import Tensor, nn

from .benchmark.arguments import exit_status
from .benchmark.machine import peak_memory_mb
from .flows import DEFAULT_FLOW, flow_nn
from .trainer import JeffreysNPE
from .utils.quiet import quiet, silent

__all__ = ["CASES", "Case", "main"]


class Case(NamedTuple):
    """Simulations of ``num`` pairs, d parameters and c data; ``embed`` for an embedding net."""

    num: int
    d: int
    c: int
    embed: bool
    epochs: int


CASES = {
    "n = 10,000": Case(10_000, 10, 10, False, 3),
    "n = 100,000": Case(100_000, 10, 10, False, 2),
    "n = 1,000,000": Case(1_000_000, 10, 10, False, 1),
    "d = 2": Case(2000, 2, 100, False, 5),
    "d = 20": Case(2000, 20, 100, False, 5),
    "d = 100": Case(2000, 100, 100, False, 5),
    "10,000 entries, embedding net": Case(2000, 10, 10_000, True, 5),
    "10,000 entries, no embedding net": Case(2000, 10, 10_000, False, 5),
}
"""What is trained, by the name in the table."""


def _simulate(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(case.num, case.d, generator=generator) - 1
    mixing = torch.randn(case.d, case.c, generator=generator) / case.d**0.5
    # In place: what the simulator takes is none of the training's memory.
    x = torch.randn(case.num, case.c, generator=generator)
    return theta, x.addmm_(theta, mixing)


def _print_measured(case: Case) -> None:
    """Train, and print what it took as JSON."""
    torch.set_num_threads(1)
    before = peak_memory_mb()
    theta, x = _simulate(case)
    prior = BoxUniform(-torch.ones(case.d), torch.ones(case.d))
    build: Any = DEFAULT_FLOW
    if case.embed:
        net = nn.Sequential(nn.Linear(case.c, 64), nn.ReLU(), nn.Linear(64, 20))
        build = flow_nn(prior, embedding_net=net)
    trainer = JeffreysNPE(prior, build, seed=0, **silent()).append_simulations(theta, x)
    with quiet(), warnings.catch_warnings():
        # sbi remarks on short runs, which are meant to be short.
        warnings.simplefilter("ignore")
        estimator = trainer.train(max_num_epochs=case.epochs)
    with torch.no_grad():
        loss = -estimator.log_prob(theta[None, :1000], x[:1000]).mean().item()
    seconds = min(trainer.summary["epoch_durations_sec"])
    above = peak_memory_mb() - before - (theta.nbytes + x.nbytes) / 1e6
    print(json.dumps({"seconds_per_epoch": seconds, "megabytes": above, "training_nll": loss}))


def main(arguments: list[str] | None = None) -> None:
    """Measure the cases asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("results/bench-scaling.csv"))
    parser.add_argument("--one", choices=list(CASES), help="print one case as JSON, and no table")
    options = parser.parse_args(arguments)
    if options.one is not None:
        _print_measured(CASES[options.one])
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.cases:
        command = [sys.executable, "-m", "sbi_jeffreys.bench_scaling", "--one", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        per_simulation = 1e6 * found["seconds_per_epoch"] / CASES[name].num
        rows.append({"case": name, **found, "microseconds_per_simulation": per_simulation})
        pd.DataFrame(rows).to_csv(options.out, index=False)
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    sys.exit(exit_status("bench_scaling", main))
