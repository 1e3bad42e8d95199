"""Figure 2: the dual against 25 fixed weightings, on few samples of a Gaussian mixture.

The fixed weightings are (1, w2, w3) with w2 and w3 on a grid. The claims are judged on test data,
all in nats: "better" is the flow's last NLL, "steady" is how far the last NLL lies above the best.
Our estimators do not depend on the partition function Z, which a gauge of fixed weight pins at one,
so that the claim on Z is put to runs without the gauge as well.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..density import DRAWS
from ..duals import FixedWeights
from ..plotting import PALETTE, style
from .claims import Claim, judge
from .data import Sizes, gaussian_mixture, split
from .figures import save
from .models import best_and_last, curve, train
from .runs import Result, run_all

__all__ = ["GRID", "plot", "run"]

GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of D2 and of D3, relative to that of D1."""

# Runs without the gauge, to see what Z does when nothing holds it: the dual and some weights.
_FREE: dict[str, tuple[float, float, float]] = {
    "1-1-1": (1.0, 1.0, 1.0),
    "1-10-1": (1.0, 10.0, 1.0),
    "1-0.1-1": (1.0, 0.1, 1.0),
    "1-1-10": (1.0, 1.0, 10.0),
}
# What runs with more than one seed.
_ALL_SEEDS = ("dual", "dual_quadratic", "flow")


def run(
    out: Path, *, seeds: list[int] | None = None, quick: bool = False, jobs: int = 2
) -> list[Claim]:
    """Run the experiment, write `fig2.csv` and `fig2.png`, and return the claims.

    The duals and the flow alone run with all seeds; the grid, 25 runs, with the first of them.
    """
    sizes = Sizes(30, 200, 1) if quick else Sizes()
    seeds = ([0, 1] if quick else list(range(5))) if seeds is None else seeds
    runs = {}
    for seed in seeds:
        for name, arguments in _variants(quick).items():
            if seed == seeds[0] or name in _ALL_SEEDS:
                runs[f"{name}_seed{seed}"] = {"name": name, "seed": seed, "arguments": arguments}
    table, _ = run_all(out, "fig2", _train, runs, settings=sizes, jobs=jobs)
    table.to_csv(out / "fig2.csv", index=False)
    save(plot(table[table["seed"] == seeds[0]]), out / "fig2.png")
    return _claims(table, seeds)


def _variants(quick: bool) -> dict[str, dict[str, Any]]:
    """Return arguments of `train` by the name of the weighting."""
    grid = (0.1, 10.0) if quick else GRID
    variants: dict[str, dict[str, Any]] = {
        "dual": {"method": "ours"},
        "dual_quadratic": {"method": "ours", "objective": "dual_quadratic"},
        "flow": {"method": "flow"},
    }
    for w2 in grid:
        for w3 in grid:
            weights = FixedWeights((1.0, w2, w3))
            variants[f"fixed_1-{w2:g}-{w3:g}"] = {"method": "ours", "objective": weights}
    variants["free_dual"] = {"method": "ours", "gauge": 0.0}
    for name, free in list(_FREE.items())[: 1 if quick else None]:
        variants[f"free_{name}"] = {
            "method": "ours",
            "gauge": 0.0,
            "objective": FixedWeights(free),
        }
    return variants


def _train(*, name: str, seed: int, arguments: dict[str, Any], settings: Sizes) -> Result:
    arguments = dict(arguments)
    gauge = arguments.pop("gauge", None)
    if gauge is not None:
        arguments["draws"] = replace(DRAWS, gauge=gauge)
    data = split("gaussian_mixture", seed, num_train=settings.num_train, num_test=settings.num_test)
    floor = -gaussian_mixture().log_prob(data.test).mean().item()
    density = train(data=data, seed=seed, epochs=settings.epochs, **arguments)
    return Result(curve(density, weighting=name, seed=seed, nll_truth=floor), {})


def _claims(table: pd.DataFrame, seeds: list[int]) -> list[Claim]:
    first = table[table["seed"] == seeds[0]]
    return [_claim_on_pattern(table, seeds), _claim_on_weights(first), _claim_on_z(first)]


def _claim_on_pattern(table: pd.DataFrame, seeds: list[int]) -> Claim:
    flow = best_and_last(table, ["weighting", "seed"]).set_index(["weighting", "seed"])
    proxy = best_and_last(table[table["weighting"] == "dual"], ["seed"], "nll_proxy")["last"]
    dual, alone = flow.loc["dual"], flow.loc["flow"]
    gains = alone["best"] - dual["last"]
    gain, drift, last = gains.mean(), dual["drift"].mean(), dual["last"].mean()
    return judge(
        "fig2",
        "with the dual the flow beats a perfectly early-stopped flow, stays, and so does the proxy",
        {
            f"mean gain {gain:.3f} nats, at least 0.14": gain >= 0.14,
            f"last within 0.02 of best ({drift:.3f})": drift <= 0.02,
            f"proxy at least as good as flow at the end ({proxy.mean():.3f}, {last:.3f})": (
                proxy.mean() <= last
            ),
        },
        f"gain by seed {', '.join(f'{g:.3f}' for g in gains)}; flow alone: best "
        f"{alone['best'].mean():.3f}, last {alone['last'].mean():.3f}; truth "
        f"{table['nll_truth'].mean():.3f}; seeds {seeds}",
    )


def _claim_on_weights(table: pd.DataFrame) -> Claim:
    flow = best_and_last(table, ["weighting"]).set_index("weighting")
    fixed, dual = flow[flow.index.str.startswith("fixed")], flow.loc["dual"]
    quadratic = flow.loc["dual_quadratic"]
    rank = int((fixed["last"] < dual["last"]).sum())
    steadier = int((fixed["drift"] < dual["drift"]).sum())
    lowest, middle, of = fixed["last"].idxmin(), fixed["last"].median(), len(fixed)
    return judge(
        "fig2",
        "the dual is better and steadier than every fixed weighting",
        {
            f"better than all {of} (last NLL {dual['last']:.3f}; {rank} are lower, the lowest is "
            f"{lowest} with {fixed.loc[lowest, 'last']:.3f})": rank == 0,
            f"steadier than all {of} (drift {dual['drift']:.3f}; {steadier} drift less)": (
                steadier == 0
            ),
            f"better than the median of them ({middle:.3f})": dual["last"] < middle,
        },
        f"with quadratic prices throughout: last {quadratic['last']:.3f}, drift "
        f"{quadratic['drift']:.3f}; seed {table['seed'].iloc[0]}",
    )


def _claim_on_z(table: pd.DataFrame) -> Claim:
    z = np.exp(table.groupby("weighting")["log_partition"].last())
    fixed, free = z[z.index.str.startswith("fixed")], z[z.index.str.startswith("free_1")]
    return judge(
        "fig2",
        "Z of the proxy stays at one under the dual and grows under fixed weights",
        {
            f"Z = {z['dual']:.2f} under the dual, within 0.2 of one": abs(z["dual"] - 1) <= 0.2,
            f"Z from {fixed.min():.2f} to {fixed.max():.2f} under fixed weights, more than 2 for "
            "some": fixed.max() > 2,
        },
        f"without the gauge Z = {z['free_dual']:.2f} under the dual and {free.min():.2f} to "
        f"{free.max():.2f} under fixed weights; seed {table['seed'].iloc[0]}",
    )


def plot(table: pd.DataFrame) -> Figure:
    """Return the figure: test NLL of flow and proxy, and Z, over training.

    Args:
        table: Rows of one seed: all weightings saw the same samples.
    """
    table = table.assign(partition=np.exp(table["log_partition"]))
    panels = {"nll": "flow", "nll_proxy": "proxy", "partition": r"$Z_\psi$"}
    with style():
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        for ax, (column, title) in zip(axes, panels.items(), strict=True):
            for name, rows in table.groupby("weighting", sort=False):
                ax.plot(rows["step"], rows[column], **_line(str(name)))
            ax.set(title=title, xlabel="step", ylabel="test NLL (nats)")
        # What happens is near the truth; a flow that overfits leaves the frame.
        lowest, top = table["nll_truth"].iloc[0], float(np.nanquantile(table["nll"], 0.9))
        for ax in axes[:2]:
            ax.axhline(lowest, color="k", lw=0.8, ls=":", label="truth")
            ax.set_ylim(lowest - 0.05, top)
        axes[2].set(ylabel="partition function", yscale="log")
        axes[2].axhline(1.0, color="k", lw=0.8, ls=":")
        handles = {t: h for h, t in zip(*axes[0].get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _line(name: str) -> dict[str, Any]:
    if name.startswith("fixed"):
        return {"color": "0.75", "lw": 0.8, "label": "25 fixed weightings", "zorder": 1}
    if name.startswith("free_1"):
        return {"color": PALETTE[1], "lw": 0.7, "ls": ":", "label": "fixed, no gauge", "zorder": 2}
    look = {
        "dual": (PALETTE[0], 2.2, "-", "dual"),
        "dual_quadratic": (PALETTE[4], 1.4, "-", "dual, all quadratic"),
        "free_dual": (PALETTE[0], 1.2, ":", "dual, no gauge"),
        "flow": (PALETTE[3], 1.4, "--", "flow, max. likelihood"),
    }
    color, width, style, label = look[name]
    return {"color": color, "lw": width, "ls": style, "label": label, "zorder": 3}
