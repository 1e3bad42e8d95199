"""The command line: ``sbi-jeffreys demo | bench-train | tasks``."""

# ruff: noqa: T201
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import bench_train, demo
from ._version import __version__
from .tasks import get_task, list_tasks

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; ``None`` takes those of the process.

    Returns:
        Exit status: 0, 2 for what the user can put right, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"sbi-jeffreys {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sbi-jeffreys", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("demo", help="train and compare three methods, with figures")
    _add_common(one, "results/demo")
    one.add_argument("--num-simulations", type=_positive, default=1000, metavar="N")
    one.add_argument("--quick", action="store_true", help="two epochs, few samples: a smoke test")
    one.set_defaults(run=_run_demo)

    two = commands.add_parser("bench-train", help="time the training against sbi's")
    _add_common(two, "results/bench-train")
    two.add_argument(
        "--num-simulations", type=_positive, nargs="+", default=[1000, 10_000], metavar="N"
    )
    two.add_argument("--quick", action="store_true", help="a few epochs of each, none to the end")
    two.set_defaults(run=_run_bench)

    three = commands.add_parser("tasks", help="list the benchmark tasks")
    three.set_defaults(run=_list_tasks)
    return parser


def _add_common(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder, {out} if not given")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list_tasks(),
        default=["two_moons", "slcp"],
        metavar="TASK",
        help="two_moons and slcp if not given; see `sbi-jeffreys tasks`",
    )
    parser.add_argument("--seed", type=_natural, default=0)


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number


def _run_demo(arguments: argparse.Namespace) -> None:
    demo.run_demo(
        arguments.out,
        arguments.tasks,
        num_simulations=arguments.num_simulations,
        seed=arguments.seed,
        sizes=demo.QUICK if arguments.quick else None,
    )


def _run_bench(arguments: argparse.Namespace) -> None:
    bench_train.run_bench(
        arguments.out,
        arguments.tasks,
        arguments.num_simulations,
        seed=arguments.seed,
        quick=arguments.quick,
    )


def _list_tasks(arguments: argparse.Namespace) -> None:
    for name in list_tasks():
        task = get_task(name)
        print(f"{name:<24} {task.dim_theta:>3} parameters, {task.dim_x:>4} data")


if __name__ == "__main__":
    sys.exit(main())
