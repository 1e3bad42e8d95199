"""The command line: ``sbi-jeffreys demo | bench | data | paper | bench-train | tasks``.

Each command imports what it needs when it runs, so that help comes at once.
"""

# ruff: noqa: T201
import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ._version import __version__
from .benchmark.arguments import exit_status, natural, positive
from .benchmark.cli import add_commands as add_bench_commands

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; ``None`` takes those of the process.

    Returns:
        Exit status: 0, 1 where the command itself reports failures, 2 for what the user can put
        right, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(argv).parse_args(argv)
    arguments.argv = argv
    return exit_status(f"sbi-jeffreys {arguments.command}", lambda: arguments.run(arguments))


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbi-jeffreys",
        description="Neural posterior estimation with the adaptively symmetrised Jeffreys "
        "divergence: a demo, the benchmark and its report, the paper's experiments, timings.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train and compare three methods, with figures")
    _add_common(demo, "results/demo")
    demo.add_argument("--num-simulations", type=positive, default=1000, metavar="N")
    demo.add_argument("--quick", action="store_true", help="two epochs, few samples: a smoke test")
    demo.set_defaults(run=_run_demo)

    add_bench_commands(commands.add_parser("bench", help="the benchmark: run it, report on it"))
    _add_data(commands.add_parser("data", help="published reference posteriors"))

    paper = commands.add_parser("paper", help="the paper's density-estimation experiments")
    if "paper" in argv[:1]:
        # Its options name experiments, whose code is heavy.
        import_module("sbi_jeffreys.paper.cli").add_arguments(paper)
    paper.set_defaults(run=lambda a: import_module("sbi_jeffreys.paper.cli").run(a))

    timing = commands.add_parser("bench-train", help="time the training against sbi's")
    _add_common(timing, "results/bench-train")
    timing.add_argument(
        "--num-simulations", type=positive, nargs="+", default=[1000, 10_000], metavar="N"
    )
    timing.add_argument(
        "--quick", action="store_true", help="a few epochs of each, none to the end"
    )
    timing.add_argument("--device", default="cpu", help="what to train on: cpu or cuda")
    timing.set_defaults(run=_run_bench_train)

    tasks = commands.add_parser("tasks", help="list the benchmark tasks")
    tasks.set_defaults(run=_list_tasks)
    return parser


def _add_common(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder, {out} if not given")
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=_task_name,
        default=["two_moons", "slcp"],
        metavar="TASK",
        help="two_moons and slcp if not given; see `sbi-jeffreys tasks`",
    )
    parser.add_argument("--seed", type=natural, default=0)


def _add_data(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="download sbibm's reference samples into a cache")
    fetch.add_argument("--cache", type=Path, metavar="DIR", help="the user's cache if not given")
    fetch.add_argument("--wheel", type=Path, metavar="FILE", help="sbibm's wheel, if it is here")
    fetch.set_defaults(run=_fetch)


def _task_name(text: str) -> str:
    from .tasks import list_tasks

    if text not in list_tasks():
        raise argparse.ArgumentTypeError(f"no task {text!r}, known are {', '.join(list_tasks())}")
    return text


def _run_demo(arguments: argparse.Namespace) -> None:
    from . import demo

    demo.run_demo(
        arguments.out,
        arguments.tasks,
        num_simulations=arguments.num_simulations,
        seed=arguments.seed,
        sizes=demo.QUICK if arguments.quick else None,
    )


def _run_bench_train(arguments: argparse.Namespace) -> None:
    from .bench_train import run_bench

    run_bench(
        arguments.out,
        arguments.tasks,
        arguments.num_simulations,
        seed=arguments.seed,
        quick=arguments.quick,
        device=arguments.device,
    )


def _fetch(arguments: argparse.Namespace) -> None:
    from .benchmark.published import CACHE_VARIABLE, fetch

    folder = fetch(cache=arguments.cache, wheel=arguments.wheel)
    print(f"Published reference samples are in {folder}.")
    if arguments.cache is not None:
        print(f"They are found there with {CACHE_VARIABLE}={arguments.cache}.")


def _list_tasks(arguments: argparse.Namespace) -> None:
    from .tasks import get_task, list_tasks

    for name in list_tasks():
        task = get_task(name)
        print(f"{name:<24} {task.dim_theta:>3} parameters, {task.dim_x:>4} data")


if __name__ == "__main__":
    sys.exit(main())
