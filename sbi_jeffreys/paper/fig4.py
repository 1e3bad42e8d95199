"""Figure 4: seven two-dimensional data sets, a flow by maximum likelihood against ours.

Best NLL over training (on test data: what a perfect early stopping would have found) and last NLL,
mean and standard deviation over seeds, for both flows and for our proxy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..density import JeffreysDensity
from ..plotting import style
from .claims import Claim, judge
from .data import DATA_SETS, Sizes, split
from .figures import bare, save
from .models import METHODS, best_and_last, curve, density_maps, train
from .runs import Arrays, Result, run_all

__all__ = ["SETS", "plot", "run", "summarise"]

SETS = [name for name in DATA_SETS if name != "gaussian_mixture"]
"""Names of the data sets."""

# Half the side of the maps, and their cells along it.
_EXTENT, _CELLS = {"two_moons": 2.5, "pinwheel": 2.2}, 120
_COLUMNS = {
    "sample": "sample",
    "flow_best": "flow, at its best",
    "flow_last": "flow, at the end",
    "ours_flow": "ours, flow, at the end",
    "ours_proxy": "ours, proxy, at the end",
}


def run(
    out: Path, *, seeds: list[int] | None = None, quick: bool = False, jobs: int = 2
) -> list[Claim]:
    """Run the experiment; write `fig4.csv`, `fig4-curves.csv` and `fig4.png`; return the claims."""
    sizes = Sizes(40, 200, 1) if quick else Sizes(num_train=200)
    seeds = ([0, 1] if quick else list(range(5))) if seeds is None else seeds
    sets = SETS[:2] if quick else SETS
    runs = {
        f"{name}_{method}_seed{seed}": {"name": name, "method": method, "seed": seed}
        for seed in seeds
        for name in sets
        for method in METHODS
    }
    curves, arrays = run_all(out, "fig4", _train, runs, settings=sizes, jobs=jobs)
    curves.to_csv(out / "fig4-curves.csv", index=False)
    table = summarise(curves)
    table.to_csv(out / "fig4.csv", index=False)
    first = {
        name: {"flow": arrays[f"{name}_flow_seed{seeds[0]}"]}
        | {"ours": arrays[f"{name}_ours_seed{seeds[0]}"]}
        for name in sets
    }
    save(plot(first), out / "fig4.png")
    return _claims(table, seeds)


def _points(name: str) -> Tensor:
    side = torch.linspace(-1, 1, _CELLS) * _EXTENT.get(name, 1.5)
    # The first axis of an image runs downwards.
    y, x = torch.meshgrid(side.flip(0), side, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)


def _train(*, name: str, method: str, seed: int, settings: Sizes) -> Result:
    data = split(name, seed, num_train=settings.num_train, num_test=settings.num_test)
    points, maps = _points(name), {}

    def remember_best(density: JeffreysDensity) -> None:
        losses = density.summary["test_loss"]
        if losses[-1] <= min(losses):
            maps["best"] = density.log_prob(points).exp().numpy()

    density = train(method, data, seed=seed, epochs=settings.epochs, callback=remember_best)
    maps |= density_maps(density, points) | {"sample": data.train.numpy()}
    return Result(curve(density, data=name, method=method, seed=seed), maps)


def summarise(curves: pd.DataFrame) -> pd.DataFrame:
    """Return best and last NLL, mean and standard deviation over seeds, by data set and model.

    Args:
        curves: Rows of all runs, epoch by epoch.
    """
    flows = best_and_last(curves, ["data", "method", "seed"]).rename(columns={"method": "model"})
    ours = curves[curves["method"] == "ours"]
    proxies = best_and_last(ours, ["data", "seed"], "nll_proxy").assign(model="proxy")
    groups = pd.concat([flows, proxies]).groupby(["data", "model"], sort=False)
    table = groups[["best", "last", "drift"]].agg(["mean", "std"])
    table.columns = ["_".join(column) for column in table.columns]
    return table.reset_index()


def _claims(table: pd.DataFrame, seeds: list[int]) -> list[Claim]:
    by = {model: rows.set_index("data") for model, rows in table.groupby("model")}
    flow, ours, proxy = by["flow"], by["ours"], by["proxy"]
    of = len(flow)

    def count(condition: Any) -> tuple[str, bool]:
        return f"{int(condition.sum())} of {of} sets", bool(condition.all())

    conditions = {
        "last NLL of our flow below the best of the flow": ours["last_mean"] < flow["best_mean"],
        "last NLL of our proxy below the best of the flow": proxy["last_mean"] < flow["best_mean"],
    }
    # One seed has no spread.
    if len(seeds) > 1:
        smaller = ours["last_std"] < flow["last_std"]
        conditions["smaller standard deviation of the last NLL"] = smaller
    tests: dict[str, bool] = {}
    for label, condition in conditions.items():
        text, seen = count(condition)
        tests[f"{label} on {text}"] = seen
    agree: dict[str, bool] = {}
    for label, rows in (("our flow", ours), ("our proxy", proxy)):
        text, seen = count(rows["drift_mean"] <= 0.02)
        agree[f"last within 0.02 of best for {label} on {text}"] = seen
    return [
        judge("fig4", "ours is better and more consistent", tests, f"seeds {seeds}"),
        judge(
            "fig4",
            "best and last agree for ours",
            agree,
            f"mean drift {ours['drift_mean'].mean():.3f}, proxy {proxy['drift_mean'].mean():.3f}, "
            f"flow by maximum likelihood {flow['drift_mean'].mean():.3f}; seeds {seeds}",
        ),
    ]


def plot(runs: dict[str, dict[str, Arrays]]) -> Figure:
    """Return the figure: the sample and the densities, a row for each data set.

    Args:
        runs: Arrays of the runs "flow" and "ours", by data set.
    """
    with style():
        figure = Figure(figsize=(1.7 * len(_COLUMNS), 1.75 * len(runs)), layout="constrained")
        axes = figure.subplots(len(runs), len(_COLUMNS), squeeze=False)
        for row, (name, arrays) in zip(axes, runs.items(), strict=True):
            flow, ours = arrays["flow"], arrays["ours"]
            maps = {
                "flow_best": flow["best"],
                "flow_last": flow["flow"],
                "ours_flow": ours["flow"],
                "ours_proxy": ours["proxy"],
            }
            # One colour scale for a row, which the peaks of an overfitted flow must not set.
            top = np.quantile(ours["proxy"], 0.995)
            extent = _EXTENT.get(name, 1.5)
            row[0].plot(*flow["sample"].T, "k.", ms=1.5)
            row[0].set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
            row[0].set_ylabel(name.replace("_", " "))
            for ax, values in zip(row[1:], maps.values(), strict=True):
                ax.imshow(values.reshape(_CELLS, _CELLS), vmin=0, vmax=top, cmap="viridis")
            for ax in row:
                bare(ax)
        for ax, title in zip(axes[0], _COLUMNS.values(), strict=True):
            ax.set_title(title)
    return figure
