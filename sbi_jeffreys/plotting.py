r"""Figures of a training run, and the style of all figures.

Figures are built as :class:`matplotlib.figure.Figure`, without `pyplot`: no window opens, no
backend is chosen, and settings of matplotlib are as before. Save one with `figure.savefig(path)`;
in a notebook the last value of a cell is shown.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["PALETTE", "STYLE", "plot_training", "style"]

PALETTE = sns.color_palette("colorblind")
STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "axes.linewidth": 0.8,
}

DIVERGENCES = [
    ("forward", "data to flow"),
    ("reverse", "flow to proxy"),
    ("proxy", "data to proxy"),
]
DASHES = ["-", "-", "-."]  # the third often lies on the first

Series = tuple[str, str, str]  # key in the summary, label, line style
PANELS: dict[str, tuple[str, list[Series]]] = {
    "likelihood": (
        "held-out NLL (nats)",
        [("validation_loss", "flow", "-"), ("validation_loss_proxy", "proxy", "-")],
    ),
    "divergences": (
        "divergence (nats)",
        [(f"divergence_{k}", v, dash) for (k, v), dash in zip(DIVERGENCES, DASHES, strict=True)]
        + [(f"slack_{k}", "", "--") for k, _ in DIVERGENCES],
    ),
    "multipliers": (
        "multiplier",
        [(f"multiplier_{k}", v, dash) for (k, v), dash in zip(DIVERGENCES, DASHES, strict=True)],
    ),
    "log_partition": (
        r"$\log Z_\psi(x)$ (nats), mean ± std",
        [("log_partition_mean", "", "-")],
    ),
    "effective_sample_size": (
        "effective sample size (fraction)",
        [("effective_sample_size", "", "-")],
    ),
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the style of all figures here."""
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        yield


def plot_training(record: Any) -> Figure:
    r"""Plot what was recorded in training, epoch by epoch.

    Panels: held-out negative log likelihood of flow and proxy, where a dot marks the flow's best
    epoch (by its bounded loss) in each call of `train()`; divergences, with slacks dashed;
    multipliers; mean of :math:`\log Z_\psi(x)` with a band of one standard deviation over x;
    effective sample size of importance weights. A panel of which nothing was recorded is left out.
    Epochs of several calls of `train()` follow one another; dotted lines stand between them.

    Args:
        record: A trainer after `train()`, or its `summary`. The curve of log Z is that of the
            proxy while it trained; its mean is moved to zero after the last epoch.

    Returns:
        Figure.

    Raises:
        ValueError: If there is no summary, or no epoch or no finite number in it.
    """
    summary = record if isinstance(record, Mapping) else getattr(record, "summary", None)
    if not summary or _values(summary, "validation_loss").size == 0:
        raise ValueError(
            "No training was recorded: call train() first, then plot its record. One that diverged "
            "in its first epoch has none."
        )
    panels = [name for name in PANELS if _recorded(summary, name)]
    if not panels:
        raise ValueError("Nothing that was recorded is finite: there is nothing to plot.")
    with style():
        if len(panels) == len(PANELS):
            # The first panel is the one to read: it is twice as wide.
            layout: Any = [panels[:1] * 2 + panels[1:2], panels[2:]]
        else:
            layout = [panels]
        columns, rows = len(layout[0]), len(layout)
        figure = Figure(figsize=(max(3.2 * columns, 4.5), 2.4 * rows), layout="constrained")
        for name, ax in figure.subplot_mosaic(layout).items():
            _plot_panel(ax, summary, name)
            _mark_rounds(ax, summary)
        sns.despine(fig=figure)
    return figure


def _values(summary: Mapping[str, Any], key: str) -> np.ndarray:
    return np.asarray(summary.get(key, ()), dtype=float).reshape(-1)


def _recorded(summary: Mapping[str, Any], panel: str) -> bool:
    return any(np.isfinite(_values(summary, key)).any() for key, _, _ in PANELS[panel][1])


def _plot_panel(ax: Axes, summary: Mapping[str, Any], name: str) -> None:
    ylabel, series = PANELS[name]
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.set_label(name)
    for i, (key, label, style) in enumerate(series):
        if not _is_drawn(summary, key):
            continue
        values = _values(summary, key)
        epochs = np.arange(1, len(values) + 1)
        # Slacks follow the three divergences and have their colours.
        color = PALETTE[i % 3] if name != "log_partition" else PALETTE[2]
        # A run of one epoch has no line to show.
        marker = "." if len(values) == 1 else None
        width = 1.0 if style == "--" else 1.4
        ax.plot(epochs, values, style, color=color, label=label, marker=marker, linewidth=width)
        if key == "log_partition_mean":
            spread = _values(summary, "log_partition_std")
            if spread.shape == values.shape:
                band = values - spread, values + spread
                ax.fill_between(epochs, *band, color=color, alpha=0.25, linewidth=0)
    if name == "likelihood":
        _mark_best(ax, summary)
    elif name == "log_partition":
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    elif name == "effective_sample_size":
        ax.set_ylim(0, 1.02)
    elif name == "divergences":
        # Hundreds of nats in the first epoch, tenths in the last.
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    handles = ax.get_legend_handles_labels()[0]
    if any(_is_drawn(summary, key) for key, _, style in series if style == "--"):
        handles.append(Line2D([], [], color="0.4", linestyle="--", linewidth=1.0, label="slack"))
    if handles:
        ax.legend(handles=handles, labelspacing=0.3, frameon=True, framealpha=0.8, edgecolor="none")


def _is_drawn(summary: Mapping[str, Any], key: str) -> bool:
    measured = np.isfinite(_values(summary, key)).any()
    return bool(measured) and not _is_idle_slack(summary, key)


def _is_idle_slack(summary: Mapping[str, Any], key: str) -> bool:
    """Whether this is the slack of a linear price, which lies on its divergence by definition."""
    if not key.startswith("slack_"):
        return False
    multipliers = _values(summary, key.replace("slack_", "multiplier_"))
    return multipliers.size > 1 and bool(np.ptp(multipliers) == 0)


def _rounds(summary: Mapping[str, Any]) -> list[slice]:
    """Epochs of each call of train()."""
    total = len(_values(summary, "validation_loss"))
    ends = np.cumsum(_values(summary, "epochs_trained")[:-1].astype(int))
    edges = [0, *(int(end) for end in ends if 0 < end < total), total]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _mark_rounds(ax: Axes, summary: Mapping[str, Any]) -> None:
    for epochs in _rounds(summary)[1:]:
        ax.axvline(epochs.start + 0.5, color="0.5", linestyle=":", linewidth=1.0, zorder=0)


def _mark_best(ax: Axes, summary: Mapping[str, Any]) -> None:
    loss = _values(summary, "validation_loss")
    # What early stopping goes by, where it was recorded.
    judged = _values(summary, "validation_loss_bounded")
    judged = judged if len(judged) == len(loss) else loss
    best = [
        epochs.start + int(np.nanargmin(judged[epochs]))
        for epochs in _rounds(summary)
        if np.isfinite(judged[epochs]).any()
    ]
    ax.plot(
        np.add(best, 1), loss[best], "o", color=PALETTE[0], markeredgecolor="white", label="best"
    )
