"""Tables of our values beside published ones, as :class:`.markup.Table`."""

import pandas as pd

from .catalogue import METRICS, format_number
from .compare import summary
from .markup import Cell, Table
from .published import CLASSIFIERS, TOLERANCE, best_amortised, compare_published

__all__ = ["best_published_table", "published_table"]

PUBLISHED_NOTE = (
    "sbibm's values are of 10 official observations and 10,000 samples of each; this run's "
    "evaluation stands at the top."
)


def published_table(table: pd.DataFrame) -> Table | None:
    """Compare our runs of published methods with what was published.

    Args:
        table: Tidy table of :class:`.load.Results`.

    Returns:
        A row per pair, flagged beyond the tolerance; `None` if there is no pair.
    """
    pairs = compare_published(table)
    if pairs.empty:
        return None
    rows = [
        [
            Cell(pair.task),
            Cell(f"{pair.num_simulations:,}"),
            Cell(METRICS[pair.metric].label),
            Cell(pair.method),
            Cell(_published_name(pair.published_method, pair.digitised)),
            Cell(format_number(pair.ours, 3)),
            Cell(format_number(pair.published, 3)),
            Cell(
                format_number(pair.difference, 3, sign=True) + (" !" if pair.beyond else ""),
                bold=pair.beyond,
            ),
            Cell(pair.source),
        ]
        for pair in pairs.itertuples()
    ]
    return Table(
        "published",
        f"Our runs and published values: {pairs['beyond'].sum()} of {len(pairs)} differ by more "
        f"than {TOLERANCE}",
        (
            "task",
            "simulations",
            "metric",
            "our run of",
            "published as",
            "ours",
            "published",
            "difference",
            "source",
        ),
        rows,
        f"Ours less published; beyond {TOLERANCE} it is bold and marked !. Networks and training "
        "of a method have changed since: sbibm's NPE is a spline flow, sbi's a MAF. "
        f"{PUBLISHED_NOTE} * read off a figure.",
        numeric=False,
    )


def best_published_table(table: pd.DataFrame) -> Table | None:
    """Compare our best method with the best published amortised one.

    Args:
        table: Tidy table of :class:`.load.Results`.

    Returns:
        A row per task, budget and classifier; `None` if nothing published matches.
    """
    rows = []
    for metric in CLASSIFIERS:
        found = summary(table, metric)
        most = found.groupby(level=["task", "num_simulations"])["num_values"].transform("max")
        means = found.loc[found["num_values"] == most, "mean"]
        published = best_amortised(metric).set_index(["task", "num_simulations"])
        for cell, group in means.groupby(level=["task", "num_simulations"]):
            if cell not in published.index:
                continue
            theirs = published.loc[cell]
            name = _published_name(theirs["method"], theirs["digitised"])
            rows.append(
                [
                    Cell(cell[0]),
                    Cell(f"{cell[1]:,}"),
                    Cell(METRICS[metric].label),
                    Cell(group.idxmin()[-1]),
                    Cell(format_number(group.min(), 3)),
                    Cell(name),
                    Cell(format_number(theirs["c2st_mean"], 3)),
                    Cell(format_number(group.min() - theirs["c2st_mean"], 3, sign=True)),
                    Cell(theirs["source"]),
                ]
            )
    if not rows:
        return None
    return Table(
        "published_best",
        "Best of this run and best published amortised method",
        (
            "task",
            "simulations",
            "metric",
            "best here",
            "C2ST",
            "best published",
            "C2ST, published",
            "difference",
            "source",
        ),
        rows,
        "Both are chosen by the value shown, which flatters both; ours among methods with all "
        f"seeds and observations. {PUBLISHED_NOTE} Pretrained and sequential "
        "methods, and those that know the task's structure, are left out. * read off a figure.",
        numeric=False,
    )


def _published_name(method: str, digitised: bool) -> str:
    return f"{method} *" if digitised else method
