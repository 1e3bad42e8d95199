r"""Figure 3: stability of the dual, of a flow and of WGAN-GP, at a low and a high learning rate.

All are judged by :math:`\mathrm{KL}(\pi \| p)` to the true mixture, by quadrature on a grid. A GAN
has no density: its samples are counted on the grid and smoothed, and a thousandth of the mass is
spread evenly, so that what it misses costs a finite amount. The same treatment of true samples
gives the floor of these numbers, which is in the table.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..density import STEPS_PER_EPOCH, JeffreysDensity
from ..plotting import PALETTE, style
from .claims import Claim, judge
from .data import gaussian_mixture, split
from .figures import save
from .models import best_and_last, curve, train
from .runs import Result, run_all
from .wgan import train_wgan

__all__ = ["METHODS", "RATES", "kl_of_samples", "kl_on_grid", "plot", "run"]

RATES = {"low": 5e-4, "high": 1e-2}
"""Learning rates of all models; our proxy has 2.5 times that, as by default."""

METHODS = {"flow": "flow, max. likelihood", "ours": "ours", "wgan": "WGAN-GP"}
"""Labels of the methods."""

# The grid covers five standard deviations; its spacing is a fifth of the smallest one.
_EXTENT, _CELLS = 2.4, 240
# Standard deviation of the smoothing of samples, half of the smallest one of the mixture.
_BANDWIDTH, _SPREAD = 0.05, 1e-3


class Sizes(NamedTuple):
    """Samples and epochs."""

    num_train: int = 100
    num_test: int = 2000
    epochs: int = 30
    num_generated: int = 20_000


def run(
    out: Path, *, seeds: list[int] | None = None, quick: bool = False, jobs: int = 2
) -> list[Claim]:
    """Run the experiment, write `fig3.csv` and `fig3.png`, and return the claims."""
    sizes = Sizes(30, 200, 1, 2000) if quick else Sizes()
    seeds = ([0] if quick else [0, 1, 2]) if seeds is None else seeds
    runs = {
        f"{method}_{rate}_seed{seed}": {"method": method, "rate": rate, "seed": seed}
        for seed in seeds
        for rate in RATES
        for method in METHODS
    }
    table, _ = run_all(out, "fig3", _train, runs, settings=sizes, jobs=jobs)
    table.to_csv(out / "fig3.csv", index=False)
    save(plot(table), out / "fig3.png")
    return _claims(table)


def _grid() -> Tensor:
    """Return the centres of the cells, shape (_CELLS**2, 2), the first axis slowest."""
    edges = torch.linspace(-_EXTENT, _EXTENT, _CELLS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    return torch.cartesian_prod(centres, centres)


def kl_on_grid(log_prob: Tensor, points: Tensor) -> float:
    r"""Return :math:`\mathrm{KL}(\pi \| p)` by quadrature.

    Args:
        log_prob: Log density of a model at the points, nats, shape (n,).
        points: Centres of the cells of a grid with equal areas, shape (n, 2).

    Returns:
        Nats. What :math:`\pi` has outside of the grid is left out.
    """
    log_truth = gaussian_mixture().log_prob(points).double()
    weights = log_truth.exp() / log_truth.exp().sum()
    return float((weights * (log_truth - log_prob.double())).sum())


def kl_of_samples(samples: Tensor) -> float:
    """Return the same for a model known by samples, shape (n, 2), smoothed on the grid."""
    edges = np.linspace(-_EXTENT, _EXTENT, _CELLS + 1)
    finite = samples[samples.isfinite().all(dim=1)].numpy()
    counts, *_ = np.histogram2d(finite[:, 0], finite[:, 1], bins=(edges, edges))
    cell = (2 * _EXTENT / _CELLS) ** 2
    smooth = gaussian_filter(counts, _BANDWIDTH / cell**0.5, mode="constant")
    density = (1 - _SPREAD) * smooth / (len(samples) * cell) + _SPREAD / (2 * _EXTENT) ** 2
    return kl_on_grid(torch.from_numpy(np.log(density)).flatten(), _grid())


def _train(*, method: str, rate: str, seed: int, settings: Sizes) -> Result:
    data = split("gaussian_mixture", seed, num_train=settings.num_train, num_test=settings.num_test)
    columns = {"method": method, "rate": rate, "learning_rate": RATES[rate], "seed": seed}
    if method == "wgan":
        return Result(_train_wgan(data.train, columns, settings), {})
    divergences: list[dict[str, float]] = []
    density = train(
        method,
        data,
        seed=seed,
        epochs=settings.epochs,
        callback=lambda d: divergences.append(_divergences(d)),
        learning_rate=RATES[rate],
        proxy_learning_rate=2.5 * RATES[rate],
    )
    table = curve(density, **columns)
    return Result(pd.concat([table, pd.DataFrame(divergences)], axis=1), {})


def _divergences(density: JeffreysDensity) -> dict[str, float]:
    points = _grid()
    found = {"kl": kl_on_grid(density.log_prob(points), points)}
    if density.has_proxy:
        found["kl_proxy"] = kl_on_grid(density.proxy_log_prob(points), points)
    return found


def _train_wgan(samples: Tensor, columns: dict[str, Any], settings: Sizes) -> pd.DataFrame:
    torch.manual_seed(columns["seed"])
    truth = gaussian_mixture().sample(torch.Size((settings.num_generated,)))
    generated = train_wgan(
        samples,
        learning_rate=columns["learning_rate"],
        steps=settings.epochs * STEPS_PER_EPOCH,
        look=STEPS_PER_EPOCH,
        num=settings.num_generated,
    )
    kl = [kl_of_samples(points) for points in generated]
    table = pd.DataFrame({"step": STEPS_PER_EPOCH * np.arange(1, len(kl) + 1), "kl": kl})
    return table.assign(**columns, kl_floor=kl_of_samples(truth))


def _claims(table: pd.DataFrame) -> list[Claim]:
    seeds = sorted(set(table["seed"].tolist()))
    kl = best_and_last(table, ["method", "rate", "seed"], "kl")
    kl = kl.groupby(["method", "rate"])[["best", "last", "drift"]].mean()
    last, drift = kl["last"], kl["drift"]
    change = {m: last[m, "high"] - last[m, "low"] for m in METHODS}
    overfits = judge(
        "fig3",
        "the flow's KL to the truth rises as it overfits, ours does not",
        {
            f"flow rises by more than 0.1 nats ({drift['flow', 'low']:.3f} at the low rate, "
            f"{drift['flow', 'high']:.3f} at the high)": (
                min(drift["flow", "low"], drift["flow", "high"]) > 0.1
            ),
            f"ours rises by less than 0.02 at the low rate ({drift['ours', 'low']:.3f})": (
                drift["ours", "low"] < 0.02
            ),
            f"ours rises by less than 0.02 at the high rate ({drift['ours', 'high']:.3f})": (
                drift["ours", "high"] < 0.02
            ),
        },
        f"seeds {seeds}",
    )
    rates = judge(
        "fig3",
        "WGAN breaks at the high rate, ours barely changes",
        {
            f"WGAN's last KL is higher by more than 0.5 nats ({last['wgan', 'low']:.3f} to "
            f"{last['wgan', 'high']:.3f})": change["wgan"] > 0.5,
            f"ours changes by less than 0.05 ({last['ours', 'low']:.3f} to "
            f"{last['ours', 'high']:.3f})": abs(change["ours"]) < 0.05,
        },
        f"flow {last['flow', 'low']:.3f} to {last['flow', 'high']:.3f}; floor of a GAN's KL "
        f"{table['kl_floor'].mean():.3f}; seeds {seeds}",
    )
    return [overfits, rates]


def plot(table: pd.DataFrame) -> Figure:
    """Return the figure: KL to the truth over training, a panel for each rate."""
    with style():
        figure = Figure(figsize=(7.0, 3.0), layout="constrained")
        axes = figure.subplots(1, len(RATES), sharey=True)
        for ax, (rate, value) in zip(axes, RATES.items(), strict=True):
            for color, (method, label) in zip(PALETTE, METHODS.items(), strict=False):
                rows = table[(table["method"] == method) & (table["rate"] == rate)]
                by_step = rows.groupby("step")
                _draw(ax, by_step["kl"], color=color, label=label)
                if method == "ours":
                    _draw(ax, by_step["kl_proxy"], color=color, label="ours, proxy", ls="--")
            ax.set(title=f"{rate} learning rate, {value:g}", xlabel="step", yscale="log")
        axes[0].set_ylabel(r"KL$(\pi \,\|\, p)$ (nats)")
        axes[1].legend()
    return figure


def _draw(ax: Any, groups: Any, **line: Any) -> None:
    mean = groups.mean()
    ax.plot(mean.index, mean, **line)
    ax.fill_between(mean.index, groups.min(), groups.max(), color=line["color"], alpha=0.15, lw=0)
