"""What the figures share: the package's style, and saving."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plotting import STYLE

__all__ = ["bare", "save", "styled"]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Build a figure in the package's style; settings of matplotlib are as before afterwards."""
    with sns.axes_style("ticks"), matplotlib.rc_context(STYLE):
        yield


def bare(ax: Axes) -> None:
    """Leave only the picture of an axes."""
    ax.set(xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=150)
