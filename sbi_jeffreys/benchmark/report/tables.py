"""The report's tables, as :class:`.markup.Table`, from the tidy table of results."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from ..jobs import Job
from .catalogue import METRICS, Metric, format_number
from .compare import summary
from .markup import Cell, Table

__all__ = [
    "budgets_of",
    "difference_tables",
    "job_table",
    "score_tables",
    "tally_table",
]

MISSING = "–"
PARTIAL = " †"
PARTIAL_NOTE = (
    "†: of fewer seeds or observations than there are, or than others in the row have; the rest "
    "are missing or infinite."
)
VERDICTS = ("better", "tie", "worse")


def score_tables(
    table: pd.DataFrame, name: str, metric: Metric, methods: Sequence[str]
) -> list[Table]:
    """Build a table of means for each budget: tasks down, methods across.

    Args:
        table: Tidy table of :class:`.load.Results`.
        name: Name of the metric.
        metric: How it is shown.
        methods: Columns, in their order.

    Returns:
        Tables. Best values of a row, as written, are bold.
    """
    means = summary(table, name)
    return [
        _score_table(means.xs(budget, level="num_simulations"), name, metric, methods, budget)
        for budget in budgets_of(means)
    ]


def _score_table(
    means: pd.DataFrame, name: str, metric: Metric, methods: Sequence[str], budget: int
) -> Table:
    rows, partial = [], False
    for task, group in means.groupby(level="task"):
        found = group.droplevel("task")
        most = found["num_values"].max()
        # As it is written: pandas rounds 0.6885 another way than Python.
        written = (round(mean, metric.digits) for mean in found["mean"].dropna())
        best = min(written, default=float("nan"))
        row = [Cell(str(task))]
        for method in methods:
            if method not in found.index:
                row.append(Cell(MISSING))
                continue
            mean, error, count, asked = found.loc[method]
            text = format_number(mean, metric.digits)
            if pd.notna(error):
                text += f" ± {format_number(error, metric.digits)}"
            lacking = bool(count < max(most, asked))
            partial |= lacking
            is_best = len(found) > 1 and round(mean, metric.digits) == best and not lacking
            row.append(Cell(text + PARTIAL * lacking, bold=bool(is_best)))
        rows.append(row)
    several = means["standard_error"].notna().any()
    note = f"{metric.meaning} Mean over seeds" + (
        " ± its standard error. " if several else "; one seed, so there is no standard error. "
    )
    note += "Lower is better, best in bold."
    if partial:
        note += f" {PARTIAL_NOTE} Where such a value is the lowest, none is marked as best."
    return Table(
        f"{name}_n{budget}",
        f"{metric.label}, {budget:,} simulations",
        ("task", *methods),
        rows,
        note,
    )


def difference_tables(
    differences: pd.DataFrame, name: str, metric: Metric, methods: Sequence[str], baseline: str
) -> list[Table]:
    """Build a table of paired differences from the baseline for each budget.

    Args:
        differences: Those of the metric, from :func:`.compare.paired_differences`.
        name: Name of the metric.
        metric: How it is shown.
        methods: Methods, in their order; the baseline is left out.
        baseline: Method to compare with.

    Returns:
        Tables: tasks down, methods across, and a last row of wins, ties and losses.
    """
    others = [m for m in methods if m != baseline and m in _level(differences, "method")]
    return [
        _difference_table(
            differences.xs(budget, level="num_simulations"), name, metric, others, budget, baseline
        )
        for budget in budgets_of(differences)
    ]


def _difference_table(
    found: pd.DataFrame,
    name: str,
    metric: Metric,
    others: Sequence[str],
    budget: int,
    baseline: str,
) -> Table:
    rows, partial = [], False
    for task in _level(found, "task"):
        row = [Cell(str(task))]
        most = found.xs(task, level="task")["num_pairs"].max()
        for method in others:
            if (task, method) not in found.index:
                row.append(Cell(MISSING))
                continue
            entry = found.loc[(task, method)]
            text = format_number(entry["difference"], metric.digits, sign=True)
            if pd.notna(entry["low"]):
                low, high = (
                    format_number(entry[k], metric.digits, sign=True) for k in ("low", "high")
                )
                text += f" [{low}, {high}]"
            if entry["num_pairs"] < max(most, entry["num_asked"]):
                text += PARTIAL
                partial = True
            row.append(Cell(text, bold=entry["verdict"] == "better", tone=entry["verdict"]))
        rows.append(row)
    counts = [_tally(found.xs(m, level="method")) if len(found) else "" for m in others]
    rows.append([Cell("wins / ties / losses"), *map(Cell, counts)])
    note = (
        f"Method less {baseline}, paired over seeds and observations: below 0 the method is "
        "better. In brackets: 95 % bootstrap interval. A win (bold) or loss is an interval that "
        "excludes 0; intervals are not corrected for their number."
    )
    if found["num_seeds"].max() == 1:
        note += " One seed: intervals say nothing about another training."
    if partial:
        note += f" {PARTIAL_NOTE} Where one of two values is infinite, nobody wins or loses."
    return Table(
        f"{name}_n{budget}_paired",
        f"{metric.label}, {budget:,} simulations: difference from {baseline}",
        ("task", *others),
        rows,
        note,
    )


def tally_table(
    differences: Mapping[str, pd.DataFrame], methods: Sequence[str], baseline: str
) -> Table | None:
    """Count wins, ties and losses against the baseline over all tasks and budgets.

    Args:
        differences: By metric, from :func:`.compare.paired_differences`.
        methods: Methods, in their order.
        baseline: Method to compare with.

    Returns:
        A row per metric that has an interval somewhere; `None` if none has.
    """
    rows = []
    others = [m for m in methods if m != baseline]
    for name, found in differences.items():
        found = found[found["verdict"] != ""]
        if found.empty:
            continue
        known = _level(found, "method")
        rows.append(
            [
                Cell(METRICS[name].label),
                *(
                    Cell(_tally(found.xs(m, level="method")) if m in known else MISSING)
                    for m in others
                ),
            ]
        )
    if not rows:
        return None
    return Table(
        "tally",
        f"Wins / ties / losses against {baseline}",
        ("metric", *others),
        rows,
        "Over all tasks and budgets. A win or loss is a 95 % interval of the paired difference "
        "that excludes 0.",
    )


def _tally(found: pd.DataFrame) -> str:
    return " / ".join(str((found["verdict"] == verdict).sum()) for verdict in VERDICTS)


def job_table(name: str, title: str, jobs: Iterable[Job]) -> Table:
    """List jobs.

    Args:
        name: Name of the table.
        title: Its title.
        jobs: Jobs.

    Returns:
        A row per job.
    """
    rows = [
        [Cell(job.task), Cell(job.method), Cell(f"{job.num_simulations:,}"), Cell(str(job.seed))]
        for job in jobs
    ]
    return Table(name, title, ("task", "method", "simulations", "seed"), rows, numeric=False)


def _level(frame: pd.DataFrame, name: str) -> list[str]:
    return sorted(frame.index.get_level_values(name).unique())


def budgets_of(frame: pd.DataFrame) -> list[int]:
    """Return the sorted budgets in the index of a table of :mod:`.compare`."""
    return sorted(int(n) for n in frame.index.get_level_values("num_simulations").unique())
