"""Panels of a figure, one per task, and how methods look in them."""

import base64
import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ... import plotting

__all__ = [
    "Drawing",
    "legend",
    "log_axis",
    "looks",
    "method_handles",
    "outer_labels",
    "panels",
    "plain",
    "style",
]

COLUMNS = 4
STYLE: Any = plotting.STYLE | {
    "axes.titlesize": 9,
    # Equal input, equal file: identifiers in an SVG are random otherwise.
    "svg.hashsalt": "sbi_jeffreys",
}
COLORS = [*sns.color_palette("colorblind"), *sns.color_palette("dark")]
MARKERS = "osD^vP*Xph<>8d"


@dataclass(frozen=True)
class Drawing:
    """A figure, and what is said about it."""

    name: str
    """File name without suffix, and anchor in the page."""
    caption: str
    """What is seen, for all readers."""
    alt: str
    """What the picture is, for those who do not see it."""
    figure: Figure

    def __post_init__(self) -> None:
        # Laid out once for both formats: it takes as long as the drawing.
        with style():
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def to_png(self) -> bytes:
        """Render with 150 dots per inch."""
        return self._render("png", dpi=150, metadata={"Software": None})

    def to_data_uri(self) -> str:
        """Render as SVG, for the `src` of an image: no identifier clashes with another's."""
        svg = self._render("svg", metadata={"Date": None, "Creator": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"

    def _render(self, kind: str, **settings: Any) -> bytes:
        buffer = io.BytesIO()
        with style():
            self.figure.savefig(buffer, format=kind, facecolor="white", **settings)
        return buffer.getvalue()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set what figures of the report look like; what was set before comes back."""
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        yield


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics."""
    return text.replace("$", r"\$")


def looks(methods: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return colour and marker of each method."""
    return {m: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, m in enumerate(methods)}


def panels(
    tasks: Sequence[str], height: float, *, share_x: bool = False, share_y: bool = False
) -> tuple[Figure, dict[str, Axes]]:
    """Lay out a panel per task, with its name as title."""
    rows, columns = _balance(len(tasks), COLUMNS)
    width = 2.45 * columns + 1.2 if columns > 1 else 5.2
    figure = Figure(figsize=(width, height * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    axes = dict(zip(tasks, grid.flat, strict=False))
    for ax in grid.flat[len(tasks) :]:
        ax.remove()
    for i, (task, ax) in enumerate(axes.items()):
        ax.set_title(plain(task))
        ax.set_label(task)
        # A panel above an empty place keeps its tick labels.
        ax.tick_params(labelbottom=not share_x or i + columns >= len(tasks))
    return figure, axes


def _balance(n: int, most: int) -> tuple[int, int]:
    """Return rows and columns for n things, at most so many in a row, no row nearly empty."""
    rows = math.ceil(n / most)
    return rows, math.ceil(n / rows)


def outer_labels(axes: Mapping[str, Axes], x: str, y: str) -> None:
    """Label the axes at the left and at the bottom only."""
    columns = _balance(len(axes), COLUMNS)[1]
    for i, ax in enumerate(axes.values()):
        ax.set_xlabel(x if i + columns >= len(axes) else "")
        ax.set_ylabel(y if i % columns == 0 else "")


def log_axis(ax: Axes) -> None:
    """Make the x-axis logarithmic, with labels that fit: some numbers, however short it is."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    low, high = low / 1.3, high * 1.3
    ax.set_xlim(low, high)
    steps = (1.0, 2.0, 5.0) if high / low < 30 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put one legend for all panels below them."""
    if handles:
        columns = _balance(len(handles), max(1, int(figure.get_figwidth() / 1.7)))[1]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def method_handles(methods: Sequence[str], look: Mapping[str, Any]) -> list[Line2D]:
    """Return the legend's entries of methods."""
    return [
        Line2D([], [], color=look[m][0], marker=look[m][1], markersize=5, label=_label(m))
        for m in methods
    ]


def _label(method: str) -> str:
    # A legend leaves out what starts with an underscore; a space without width goes before it.
    return "\u200b" * method.startswith("_") + plain(method)
