"""The command ``paper``: run one experiment or all of them, and say what became of each claim."""

# ruff: noqa: T201
import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..benchmark.arguments import natural, positive
from ..utils.files import atomic_write
from . import fig2, fig3, fig4, fig5, theorem
from .claims import Claim
from .images import check_folder

__all__ = ["EXPERIMENTS", "add_arguments", "run"]

EXPERIMENTS: dict[str, Callable[[argparse.Namespace], list[Claim]]] = {
    "fig2": lambda a: fig2.run(a.out, seeds=a.seeds, quick=a.quick, jobs=a.jobs),
    "fig3": lambda a: fig3.run(a.out, seeds=a.seeds, quick=a.quick, jobs=a.jobs),
    "fig4": lambda a: fig4.run(a.out, seeds=a.seeds, quick=a.quick, jobs=a.jobs),
    "fig5": lambda a: fig5.run(a.out, seeds=a.seeds, quick=a.quick, jobs=a.jobs, images=a.images),
    "theorem": lambda a: theorem.run(a.out, quick=a.quick),
}
"""Experiments by name: each writes its table and figure, and returns its claims."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("figure", choices=[*EXPERIMENTS, "all"])
    parser.add_argument(
        "--out", type=Path, default=Path("results/paper"), help="folder, results/paper if not given"
    )
    parser.add_argument(
        "--seeds",
        type=natural,
        nargs="+",
        metavar="SEED",
        help="each experiment's own if not given",
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each: a smoke test")
    parser.add_argument("--jobs", type=positive, default=2, help="processes, 2 if not given")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="images for fig5, a subfolder for each class; scikit-learn's digits if not given",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the experiments asked for, print the verdicts and write them to `claims.csv`.

    Raises:
        ValueError: If there are runs with other settings in the folder, a claims.csv of others, or
            no usable images.
        OSError: If the folder cannot be written to, or there is none of images.
    """
    # Before anything is computed, or written.
    if arguments.images is not None:
        check_folder(arguments.images)
    claims = arguments.out / "claims.csv"
    _read_claims(claims)
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = list(EXPERIMENTS) if arguments.figure == "all" else [arguments.figure]
    for name in names:
        start = time.perf_counter()
        found = EXPERIMENTS[name](arguments)
        if arguments.quick:
            found = [each._replace(evidence=f"a smoke test; {each.evidence}") for each in found]
        _write_claims(claims, found)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s")
        for claim in found:
            print(f"- {claim.claim}\n  {claim.verdict.upper()}: {claim.evidence}")
    print(f"\nTables and figures are in {arguments.out}/.")


def _write_claims(path: Path, claims: list[Claim]) -> None:
    """Replace what the file says of these experiments; leave the others."""
    new = pd.DataFrame(claims)
    old = _read_claims(path)
    kept = old[~old["experiment"].isin(new["experiment"])]
    with atomic_write(path) as temporary:
        pd.concat([kept, new]).sort_values("experiment", kind="stable").to_csv(
            temporary, index=False
        )


def _read_claims(path: Path) -> pd.DataFrame:
    """Return the verdicts that are there.

    Raises:
        ValueError: If the file is none of ours.
    """
    columns = list(Claim._fields)
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_csv(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is no table of verdicts: {error}. Choose another --out."
        ) from None
    if not set(columns) <= set(found.columns):
        raise ValueError(
            f"{path} is no table of verdicts, it has the columns {list(found.columns)}: choose "
            "another --out."
        )
    return found[columns]
