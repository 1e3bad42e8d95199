"""Figures of differences, cost and coverage: one panel per task.

Figures are built as :class:`matplotlib.figure.Figure`, without `pyplot`, as in
:mod:`sbi_jeffreys.plotting`.
"""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .catalogue import METRICS, Metric
from .compare import summary
from .panels import (
    Drawing,
    legend,
    log_axis,
    looks,
    method_handles,
    outer_labels,
    panels,
    plain,
    style,
)
from .published import CLASSIFIERS

__all__ = ["draw_cost", "draw_coverage", "draw_differences"]

TONES = {"better": "#0072b2", "worse": "#d55e00", "tie": "0.45", "": "0.45"}
VERDICT_NAMES = {"better": "better", "worse": "worse", "tie": "interval holds 0"}


def draw_differences(
    differences: pd.DataFrame,
    name: str,
    metric: Metric,
    methods: Sequence[str],
    baseline: str,
    budget: int,
) -> Drawing | None:
    """Draw paired differences from the baseline with their intervals, one budget.

    Args:
        differences: Those of the metric, from :func:`.compare.paired_differences`.
        name: Name of the metric.
        metric: How it is shown.
        methods: Methods, in their order; the baseline is left out.
        baseline: Method to compare with.
        budget: Number of simulations.

    Returns:
        The drawing; `None` if there is no pair.
    """
    found = differences.reset_index()
    found = found[found["num_simulations"] == budget]
    if found.empty:
        return None
    tasks = sorted(found["task"].unique())
    shown = [m for m in methods if m in set(found["method"])]
    with style():
        figure, axes = panels(tasks, 0.7 + 0.24 * len(shown), share_y=True)
        for task, ax in axes.items():
            ax.axvline(0, color="0.7", linewidth=0.9, zorder=0)
            for row in found[found["task"] == task].itertuples():
                y, tone = shown.index(row.method), TONES[row.verdict]
                if row.verdict:
                    ax.plot([row.low, row.high], [y, y], color=tone, linewidth=1.6)
                ax.plot(row.difference, y, "o", color=tone, markersize=4.5)
            ax.set_yticks(range(len(shown)), [plain(m) for m in shown])
            ax.set_ylim(len(shown) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4))
        outer_labels(axes, f"difference from {plain(baseline)}", "")
        handles = [
            Line2D([], [], color=TONES[verdict], marker="o", markersize=4.5, label=label)
            for verdict, label in VERDICT_NAMES.items()
            if verdict in set(found["verdict"])
        ]
        legend(figure, handles)
        sns.despine(fig=figure)
    what = f"{metric.label}, {budget:,} simulations: difference from {baseline}"
    caption = (
        f"{what}, paired, with 95 % bootstrap intervals; left of 0 the method is better. "
        "Scales differ between tasks."
    )
    alt = f"{what}, one panel for each of {', '.join(tasks)}; methods {', '.join(shown)}."
    name = f"{name}_n{budget}_differences"
    return Drawing(name, caption, f"{alt} The table below has the numbers.", figure)


def draw_cost(
    table: pd.DataFrame, name: str, methods: Sequence[str], cost: str = "training_cpu_seconds"
) -> Drawing | None:
    """Draw a metric against the cost of training.

    Args:
        table: Tidy table of :class:`.load.Results`.
        name: Name of the metric.
        methods: Methods, in their order.
        cost: Name of the cost.

    Returns:
        The drawing; `None` if no job has both.
    """
    both = summary(table, name).join(summary(table, cost)["mean"].rename("cost"), how="inner")
    both = both[both["cost"] > 0].reset_index()
    if both.empty:
        return None
    tasks = sorted(both["task"].unique())
    shown = [m for m in methods if m in set(both["method"])]
    look = looks(methods)
    metric = METRICS[name]
    with style():
        figure, axes = panels(tasks, 2.2, share_y=name in CLASSIFIERS)
        for (task, method), rows in both.groupby(["task", "method"]):
            color, marker = look[str(method)]
            axes[str(task)].errorbar(
                rows["cost"],
                rows["mean"],
                rows["standard_error"].fillna(0.0),
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.0,
                elinewidth=1.2,
            )
        for ax in axes.values():
            log_axis(ax)
            if name in CLASSIFIERS:
                ax.set_ylim(0.48, 1.02)
        outer_labels(axes, "training (CPU s)", metric.label)
        legend(figure, method_handles(shown, look))
        sns.despine(fig=figure)
    what = f"{metric.label} against processor seconds of training"
    caption = f"{what}, means over seeds; budgets of a method are joined. Down and left is better."
    alt = f"{what}, one panel for each of {', '.join(tasks)}; methods {', '.join(shown)}."
    return Drawing(f"{name}_cost", caption, f"{alt} The tables have the numbers.", figure)


def draw_coverage(table: pd.DataFrame, methods: Sequence[str], budget: int) -> Drawing | None:
    """Draw expected coverage against its level, mean over seeds, one budget.

    Args:
        table: Tidy table of :class:`.load.Results`.
        methods: Methods, in their order.
        budget: Number of simulations.

    Returns:
        The drawing; `None` if no job has a coverage curve.
    """
    rows = table[table["metric"].str.startswith("coverage@") & (table["num_simulations"] == budget)]
    if rows.empty:
        return None
    rows = rows.assign(level=rows["metric"].str.removeprefix("coverage@").astype(float))
    tasks = sorted(rows["task"].unique())
    shown = [m for m in methods if m in set(rows["method"])]
    look = looks(methods)
    with style():
        figure, axes = panels(tasks, 2.3, share_x=True, share_y=True)
        for task, ax in axes.items():
            ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=0.9, zorder=0)
            sns.lineplot(
                rows[rows["task"] == task],
                x="level",
                y="value",
                hue="method",
                hue_order=shown,
                palette=[look[m][0] for m in shown],
                errorbar=None,
                legend=False,
                ax=ax,
            )
            ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        outer_labels(axes, "level", "coverage")
        legend(figure, method_handles(shown, {m: (look[m][0], "") for m in shown}))
        sns.despine(fig=figure)
    what = f"Expected coverage of highest-density regions, {budget:,} simulations"
    caption = (
        f"{what}: below the diagonal the posterior is too narrow, above it too wide. "
        "Mean over seeds."
    )
    alt = f"{what}, one panel for each of {', '.join(tasks)}; methods {', '.join(shown)}."
    return Drawing(f"coverage_n{budget}", caption, alt, figure)
