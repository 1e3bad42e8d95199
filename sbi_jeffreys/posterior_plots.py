r"""Figures of posteriors: samples of several, overlaid in pairs of parameters.

Style and colours are those of :mod:`sbi_jeffreys.plotting`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from .plotting import PALETTE, style

__all__ = ["plot_posteriors"]

# Points of a scatter plot for each posterior: more turn crescents into blots, and take time.
SCATTER_POINTS = 2000


def plot_posteriors(
    samples: Mapping[str, Tensor],
    *,
    labels: Sequence[str] | None = None,
    limits: Sequence[tuple[float, float]] | Tensor | None = None,
    truth: Tensor | None = None,
    title: str | None = None,
) -> Figure:
    r"""Overlay samples of several posteriors: marginals, and scatter plots of all pairs.

    Scatter plots show at most 2,000 samples of each, in random order, so that none covers the
    others.

    Args:
        samples: Samples :math:`\theta` by the name of their posterior, tensors or arrays, each of
            shape :math:`(n, d)`, n at least 2.
        labels: Names of the d parameters. `None` takes :math:`\theta_1, \ldots, \theta_d`.
        limits: Lower and upper end of each axis, shape :math:`(d, 2)`. `None` takes what holds
            nearly all samples of all posteriors.
        truth: True parameters, marked by lines, shape :math:`(d)` or :math:`(1, d)`.
        title: Title of the figure.

    Returns:
        Figure, a triangle of d (d + 1) / 2 axes.

    Raises:
        TypeError: If samples are no dictionary.
        ValueError: If there are no samples, or shapes do not match, or values are not finite, or
            a lower limit is not below its upper one.
    """
    arrays = _check_samples(samples)
    d = next(iter(arrays.values())).shape[1]
    names = [rf"$\theta_{{{k + 1}}}$" for k in range(d)] if labels is None else list(labels)
    ends = _default_limits(arrays) if limits is None else _as_limits(limits)
    true = None if truth is None else torch.as_tensor(truth).detach().cpu().double().numpy()
    if true is not None and true.shape == (1, d):
        true = true[0]
    for what, shape, expected in (
        ("labels", (len(names),), (d,)),
        ("limits", ends.shape, (d, 2)),
        ("truth", (d,) if true is None else true.shape, (d,)),
    ):
        if shape != expected:
            raise ValueError(f"{what} must have shape {expected} for {d} parameters, got {shape}.")
    if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
        raise ValueError(f"limits must be finite, each lower one below its upper, got {limits}.")

    if true is not None and not np.isfinite(true).all():
        raise ValueError(f"truth must be finite, got {true.tolist()}.")

    with style():
        side = float(np.clip(1.5 * d, 4.5, 12.0))
        figure = Figure(figsize=(side, side))
        # By hand: automatic layout of 55 axes takes longer than to draw them.
        figure.subplots_adjust(
            left=0.65 / side, bottom=0.5 / side, right=1 - 0.1 / side, top=1 - 0.35 / side
        )
        axes = figure.subplots(d, d, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
        points, colors = _shuffled_points(arrays)
        for row in range(d):
            for column in range(d):
                ax = axes[row, column]
                if column > row:
                    ax.remove()
                elif column == row:
                    _plot_marginal(ax, arrays, row, ends[row])
                else:
                    _plot_pair(ax, points[:, [column, row]], colors, ends[[column, row]])
                if column <= row:
                    _mark_truth(ax, true, row, column)
                    _label_axes(ax, names, row, column)
        sns.despine(fig=figure)
        _add_legend(figure, list(arrays), with_truth=true is not None)
        if title is not None:
            figure.suptitle(title, y=1 - 0.1 / side, va="top")
    return figure


def _check_samples(samples: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if not isinstance(samples, Mapping):
        raise TypeError(
            "samples must be a dictionary of samples by the name of their posterior, got "
            f"{type(samples).__name__}."
        )
    if not samples:
        raise ValueError("samples is empty: pass at least one posterior's samples by name.")
    for name, given in samples.items():
        if hasattr(given, "sample"):
            raise TypeError(
                f"samples[{name!r}] is a {type(given).__name__}: pass its samples, "
                "posterior.sample((1000,), x=x)."
            )
    arrays = {
        name: torch.as_tensor(value).detach().cpu().double().numpy()
        for name, value in samples.items()
    }
    dimensions = set()
    for name, value in arrays.items():
        if value.ndim != 2 or value.shape[0] < 2 or value.shape[1] < 1:
            raise ValueError(
                f"samples[{name!r}] must have shape (n, d) with n >= 2, got {value.shape}."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"samples[{name!r}] has NaN or inf: remove these rows and say so.")
        dimensions.add(value.shape[1])
    if len(dimensions) > 1:
        raise ValueError(f"posteriors differ in dimension, {sorted(dimensions)}: plot one task.")
    return arrays


def _as_limits(limits: Any) -> np.ndarray:
    if isinstance(limits, Tensor):
        limits = limits.detach().cpu()
    return np.asarray(limits, dtype=float)


def _default_limits(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Hold the central 99.8 % of each posterior and a margin, shape (d, 2)."""
    quantiles = np.stack([np.quantile(value, [0.001, 0.999], axis=0) for value in arrays.values()])
    low, high = quantiles[:, 0].min(axis=0), quantiles[:, 1].max(axis=0)
    # Constant parameters still need an axis of some length.
    margin = np.where(high > low, 0.06 * (high - low), np.maximum(0.5, 1e-6 * np.abs(low)))
    return np.stack([low - margin, high + margin], axis=1)


def _shuffled_points(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    chosen = [generator.permutation(value)[:SCATTER_POINTS] for value in arrays.values()]
    colors = np.repeat([_color(k) for k in range(len(chosen))], [len(c) for c in chosen], axis=0)
    order = generator.permutation(len(colors))
    return np.concatenate(chosen)[order], colors[order]


def _color(k: int) -> tuple[float, float, float]:
    """Grey for the first, as a rule the reference; blue and orange, the most distinct, next."""
    colors = [(0.35, 0.35, 0.35), PALETTE[1], PALETTE[0], *PALETTE[2:]]
    return colors[k % len(colors)]


def _plot_marginal(ax: Axes, arrays: dict[str, np.ndarray], k: int, ends: np.ndarray) -> None:
    edges = np.linspace(ends[0], ends[1], 41)
    for i, value in enumerate(arrays.values()):
        # Histograms, since kernel estimates blur the edges of a bounded prior.
        counts, _ = np.histogram(value[:, k], bins=edges)
        density = counts / len(value) / np.diff(edges)
        ax.stairs(density, edges, color=_color(i), linewidth=1.3)
        ax.stairs(density, edges, color=_color(i), fill=True, alpha=0.12)
    ax.set(xlim=ends, yticks=[])
    ax.set_ylim(bottom=0)


def _plot_pair(ax: Axes, points: np.ndarray, colors: np.ndarray, ends: np.ndarray) -> None:
    # Rasterised: thousands of vector marks make a PDF slow to open.
    x, y = points.T
    ax.scatter(x, y, c=colors, s=1.5, alpha=0.5, linewidths=0, rasterized=True)
    ax.set(xlim=ends[0], ylim=ends[1])


def _mark_truth(ax: Axes, true: np.ndarray | None, row: int, column: int) -> None:
    if true is None:
        return
    style: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": "--"}
    ax.axvline(true[column], **style)
    if row != column:
        ax.axhline(true[row], **style)


def _label_axes(ax: Axes, names: list[str], row: int, column: int) -> None:
    last = row == len(names) - 1
    ax.tick_params(bottom=True, labelbottom=last, labelleft=column == 0 and row > 0)
    ax.locator_params(axis="x", nbins=3)
    if last:
        ax.set_xlabel(names[column])
    if row != column:
        ax.locator_params(axis="y", nbins=3)
        if column == 0:
            ax.set_ylabel(names[row])


def _add_legend(figure: Figure, names: list[str], *, with_truth: bool) -> None:
    handles = [Line2D([], [], color=_color(k), linewidth=3) for k in range(len(names))]
    if with_truth:
        handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle="--"))
        names = [*names, "true parameters"]
    # The triangle leaves the upper right free, the more of it the more parameters.
    size = min(7 + 0.6 * len(figure.axes) ** 0.5, 12)
    figure.legend(handles, names, loc="upper right", bbox_to_anchor=(0.99, 0.94), fontsize=size)
