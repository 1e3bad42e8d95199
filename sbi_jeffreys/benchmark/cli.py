"""The commands ``sbi-jeffreys bench run | report``."""

# ruff: noqa: T201
import argparse
import shlex
from pathlib import Path
from typing import Any

from .arguments import read_text

__all__ = ["add_commands"]

# What is neither on the command line nor in the file; a smoke test needs little of everything.
DEFAULTS: dict[str, Any] = {
    "seeds": [0],
    "jobs": 1,
    "backend": "joblib",
    "reference": "own",
    "plugin": [],
    "quick": False,
    "retry_failed": False,
}
QUICK_DEFAULTS = {
    "observations": (1,),
    "num_samples": 200,
    "num_test": 200,
    "num_coverage": 100,
}
EVALUATION = ("observations", "num_samples", "num_test", "num_coverage", "metrics", "reference")
# Numbers in a range: a slip of the keyboard must not take all memory.
MOST = 100_000
REQUIRED = ("tasks", "methods", "budgets", "out")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of ``bench``."""
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train and judge every method on every task, budget and seed",
        description="Train and judge every method on every task, budget and seed. Jobs that have a "
        "record in the folder are left alone, so that a run that was stopped goes on where it was.",
    )
    _add_run(run)
    run.set_defaults(run=_run, parser=run)
    report = commands.add_parser("report", help="tables, figures and a page from the records")
    report.add_argument("directory", type=Path, metavar="DIR", help="the --out of bench run")
    report.add_argument("--out", type=Path, help="folder, DIR/report if not given")
    report.add_argument("--baseline", default="npe", metavar="METHOD", help="npe if not given")
    report.set_defaults(run=_report)


def _add_run(parser: argparse.ArgumentParser) -> None:
    # Without defaults: what is not given here may stand in the file.
    add = parser.add_argument
    add("--tasks", nargs="+", metavar="TASK", help="see `sbi-jeffreys tasks`")
    add("--methods", nargs="+", metavar="METHOD", help="an unknown one gives the list")
    add("--budgets", nargs="+", type=int, metavar="N", help="numbers of simulations")
    add("--seeds", nargs="+", type=_numbers, metavar="S", help="0:5 is 0 to 4; 0 if not given")
    add("--out", type=Path, help="folder of the records")
    add("--config", type=Path, metavar="FILE", help="YAML with these names as keys; flags override")
    add("--jobs", type=int, metavar="N", help="processes, one thread each; 1 if not given")
    add("--backend", metavar="NAME", help="joblib (if not given) or dask")
    add("--scheduler", metavar="ADDRESS", help="of Dask, like tcp://HOST:8786")
    add(
        "--observations",
        nargs="+",
        metavar="I",
        help="official (1 to 10, if not given), numbers like 1 2 or 1:4, or fresh:N",
    )
    add("--num-samples", type=int, metavar="N", help="at each observation; 10,000 if not given")
    add("--num-test", type=int, metavar="N", help="simulations for the NLL; 2,000 if not given")
    add("--num-coverage", type=int, metavar="N", help="for the coverage; 200 if not given")
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="nll c2st leakage mode_mass if not given; all for all",
    )
    add("--reference", metavar="WHOSE", help="own (if not given), or published: sbibm's samples")
    add("--plugin", type=Path, action="append", metavar="FILE", help="registers methods or tasks")
    for name, text in (
        ("--quick", "train for a moment, judge with little: a smoke test"),
        ("--retry-failed", "do failed jobs again"),
    ):
        add(name, action=argparse.BooleanOptionalAction, help=text)


def _numbers(text: str) -> list[int]:
    """Return the numbers of a range a:b, b excluded, or of one number.

    >>> _numbers("0:3"), _numbers("7")
    ([0, 1, 2], [7])
    """
    first, colon, last = text.partition(":")
    try:
        among = range(int(first), int(last) if colon else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number or a range like 0:5: {text!r}") from None
    if among.stop - among.start > MOST:
        raise argparse.ArgumentTypeError(f"more than {MOST} numbers in {text!r}")
    numbers = list(among)
    if not numbers or numbers[0] < 0:
        raise argparse.ArgumentTypeError(f"no numbers from 0 up in {text!r}")
    return numbers


def _run(arguments: argparse.Namespace) -> int:
    given = _merge(arguments)
    from .runner import run_benchmark

    missing = [name for name in REQUIRED if not given.get(name)]
    if missing:
        raise ValueError(f"needs --{', --'.join(missing)}, here or in the file of --config.")
    out = given["out"]
    summary = run_benchmark(
        out,
        tasks=given["tasks"],
        methods=given["methods"],
        budgets=given["budgets"],
        seeds=[seed for numbers in given["seeds"] for seed in _flat(numbers)],
        evaluation=_evaluation(given),
        jobs=given["jobs"],
        backend=given["backend"],
        scheduler=given.get("scheduler"),
        plugins=given["plugin"],
        retry_failed=given["retry_failed"],
        command=shlex.join(["sbi-jeffreys", *arguments.argv]),
    )
    print(f"{summary.total} jobs, {summary.done} of them done now. Records are in {out}/records.")
    if summary.failed:
        print(
            f"{len(summary.failed)} failed; their records say why. --retry-failed does them again:"
        )
        print("\n".join(f"  {job.id}" for job in summary.failed))
        return 1
    methods = given["methods"]
    baseline = "" if "npe" in methods else f" --baseline {shlex.quote(methods[0])}"
    print(f"Next: sbi-jeffreys bench report {shlex.quote(str(out))}{baseline}")
    return 0


def _flat(numbers: int | list[int]) -> list[int]:
    return numbers if isinstance(numbers, list) else [numbers]


def _merge(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return flags, then what the file says, then defaults."""
    given = {k: v for k, v in vars(arguments).items() if v is not None}
    if arguments.config is not None:
        from_file = vars(_read_config(arguments.config, arguments.parser))
        given = {k: v for k, v in from_file.items() if v is not None} | given
    defaults = DEFAULTS | (QUICK_DEFAULTS if given.get("quick") else {})
    return defaults | given


def _read_config(path: Path, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read a YAML file as if its content stood on the command line.

    Every scalar is read as text, so that the flags' own parsers judge it; YAML itself would take
    seeds 1:5 for a number in base 60.
    """
    import yaml

    try:
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a mapping from names to values.")
    names = {a.dest: a for a in parser._actions if a.dest not in ("help", "config")}
    words: list[str] = []
    for key, value in content.items():
        action = names.get(str(key).replace("-", "_"))
        if action is None:
            raise ValueError(f"{path}: unknown key {key!r}, known are {', '.join(sorted(names))}.")
        flag = action.option_strings[0]
        values = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        if isinstance(action, argparse.BooleanOptionalAction):
            if values not in (["true"], ["false"]):
                raise ValueError(f"{path}: {key} must be true or false, got {value!r}.")
            words.append(flag if values == ["true"] else action.option_strings[1])
        elif action.dest == "plugin":
            words += [word for v in values for word in (flag, v)]
        else:
            words += [flag, *values]
    return parser.parse_args(words)


def _evaluation(given: dict[str, Any]) -> Any:
    from .jobs import METRICS, Evaluation

    chosen = {name: given[name] for name in EVALUATION if name in given}
    if isinstance(chosen.get("observations"), list):
        chosen["observations"] = _observations(chosen["observations"])
    if "metrics" in chosen:
        chosen["metrics"] = METRICS if chosen["metrics"] == ["all"] else tuple(chosen["metrics"])
    return Evaluation(**chosen, quick=given["quick"])


def _observations(words: list[str]) -> tuple[int, ...] | str:
    if words == ["official"]:
        return tuple(range(1, 11))
    if len(words) == 1 and words[0].startswith("fresh:"):
        return words[0]
    try:
        numbers = [number for word in words for number in _numbers(word)]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--observations: {error}, and neither official nor fresh:N") from None
    return tuple(numbers)


def _report(arguments: argparse.Namespace) -> None:
    from .report import write_report

    path = write_report(arguments.directory, arguments.out, baseline=arguments.baseline)
    print(f"{path}")
