"""Figures of a metric's values, per task, with the published ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from .catalogue import Metric
from .compare import scores
from .panels import Drawing, legend, looks, method_handles, outer_labels, panels, plain, style
from .published import CLASSIFIERS, best_amortised, published_npe

__all__ = ["draw_scores"]

PUBLISHED: dict[str, tuple[Any, Any, str]] = {"npe": ("0.25", "--", "x"), "best": ("0.5", ":", "+")}


def draw_scores(
    table: pd.DataFrame, name: str, metric: Metric, methods: Sequence[str]
) -> Drawing | None:
    """Draw a metric: against the budget if there are several, else a row of dots per method.

    Args:
        table: Tidy table of :class:`.load.Results`.
        name: Name of the metric.
        metric: How it is shown.
        methods: Methods, in their order.

    Returns:
        The drawing, with published values where the metric has any; `None` without values.
    """
    values = scores(table, name)
    if values.empty:
        return None
    tasks = sorted(values["task"].unique())
    budgets = sorted(int(n) for n in values["num_simulations"].unique())
    shown = [m for m in methods if m in set(values["method"])]
    with style():
        if len(budgets) > 1:
            figure, axes = panels(tasks, 2.2, share_x=True, share_y=name in CLASSIFIERS)
            handles = _draw_lines(axes, values, name, shown, looks(methods))
            outer_labels(axes, "simulations", metric.label)
            what = f"{metric.label} against the number of simulations"
        else:
            height = 0.7 + 0.24 * len(shown)
            figure, axes = panels(tasks, height, share_x=name in CLASSIFIERS, share_y=True)
            handles = _draw_dots(axes, values, name, shown, looks(methods), budgets[0])
            outer_labels(axes, metric.label, "")
            what = f"{metric.label} with {budgets[0]:,} simulations"
        legend(figure, handles)
        sns.despine(fig=figure)
    several = values["seed"].nunique() > 1
    caption = f"{what}: mean over seeds{', with its standard error' if several else ' (one seed)'}."
    caption += f" {metric.meaning}"
    if any(line.get_color() in _published_colors() for line in handles):
        caption += (
            " Grey: published values by the same classifier, in a circle if read off a figure; "
            "which method the best one is, is in the last tables."
        )
    alt = f"{what}, one panel for each of {', '.join(tasks)}; methods {', '.join(shown)}."
    return Drawing(f"{name}_scores", caption, f"{alt} The tables below have the numbers.", figure)


def _published_colors() -> set[str]:
    return {color for color, _, _ in PUBLISHED.values()}


def _draw_lines(
    axes: Mapping[str, Axes],
    values: pd.DataFrame,
    name: str,
    methods: Sequence[str],
    look: Mapping[str, Any],
) -> list[Line2D]:
    """Draw lines over budgets, and published ones; return the legend's entries."""
    span = values["num_simulations"].min(), values["num_simulations"].max()
    drawn = {}
    budgets = sorted(values["num_simulations"].unique())
    for task, ax in axes.items():
        ax.set_xscale("log")
        ax.set_xticks(budgets, [f"{n:,}" for n in budgets])
        ax.xaxis.set_minor_formatter(NullFormatter())
        sns.lineplot(
            values[values["task"] == task],
            x="num_simulations",
            y="value",
            hue="method",
            hue_order=methods,
            palette=[look[m][0] for m in methods],
            style="method",
            style_order=methods,
            markers=[look[m][1] for m in methods],
            dashes=False,
            errorbar="se",
            err_style="bars",
            markersize=5,
            legend=False,
            ax=ax,
        )
        for key, label, rows in _published(name, task):
            rows = rows[rows["num_simulations"].between(*span)]
            if rows.empty:
                continue
            color, dash, marker = PUBLISHED[key]
            x, y = rows["num_simulations"], rows["c2st_mean"]
            ax.plot(x, y, dash, color=color, marker=marker, markersize=5, linewidth=1.1, zorder=1)
            _circle(ax, x[rows["digitised"]], y[rows["digitised"]], color)
            drawn[label] = Line2D([], [], color=color, linestyle=dash, marker=marker, label=label)
        if name in CLASSIFIERS:
            ax.set_ylim(0.48, 1.02)
    return [*method_handles(methods, look), *drawn.values()]


def _circle(ax: Axes, x: Any, y: Any, color: str) -> None:
    ax.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=color, zorder=1)


def _draw_dots(
    axes: Mapping[str, Axes],
    values: pd.DataFrame,
    name: str,
    methods: Sequence[str],
    look: Mapping[str, Any],
    budget: int,
) -> list[Line2D]:
    """Draw a dot per method, faint ones per seed; return the legend's entries, the published."""
    drawn = {}
    for task, ax in axes.items():
        rows = values[values["task"] == task]
        common: Any = {
            "data": rows.assign(method=pd.Categorical(rows["method"], methods)),
            "x": "value",
            "y": "method",
            "hue": "method",
            "hue_order": methods,
            "order": methods,
            "palette": [look[m][0] for m in methods],
            "legend": False,
            "ax": ax,
        }
        sns.stripplot(**common, size=3, alpha=0.4, jitter=False)
        sns.pointplot(
            **common, errorbar="se", linestyle="none", markersize=4.5, err_kws={"linewidth": 1.4}
        )
        ax.set_yticks(range(len(methods)), [plain(m) for m in methods])
        ax.set_ylabel("")
        for key, label, published in _published(name, task):
            for row in published[published["num_simulations"] == budget].itertuples():
                color, dash, _ = PUBLISHED[key]
                ax.axvline(row.c2st_mean, color=color, linestyle=dash, linewidth=1.1, zorder=0)
                if row.digitised:
                    _circle(ax, [row.c2st_mean], [len(methods) - 0.5], color)
                drawn[label] = Line2D([], [], color=color, linestyle=dash, label=label)
        if name in CLASSIFIERS:
            ax.set_xlim(0.48, 1.02)
    return list(drawn.values())


def _published(name: str, task: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield key, label and rows of what is published for a metric and a task."""
    if name not in CLASSIFIERS:
        return
    npe, best = published_npe(name), best_amortised(name)
    source = "sbibm" if name == "c2st" else "NPE-PFN paper"
    yield "npe", f"published NPE ({source})", npe[npe["task"] == task]
    yield "best", "best published, amortised", best[best["task"] == task]
