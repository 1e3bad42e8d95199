"""What the figures share beside the package's style."""

from pathlib import Path

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["bare", "save"]


def bare(ax: Axes) -> None:
    """Leave only the picture of an axes."""
    ax.set(xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=150)
