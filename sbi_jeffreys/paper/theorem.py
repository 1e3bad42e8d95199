r"""The duality gap where primal and dual can be solved exactly, against the richness ν.

The models are distributions over three outcomes. Both families, :math:`p` and :math:`q`, are
segments in the simplex, convex, and neither contains the truth :math:`\pi`. The divergences
:math:`D_1 = \mathrm{KL}(\pi \| p)`, :math:`D_2 = \mathrm{KL}(p \| q)` and
:math:`D_3 = \mathrm{KL}(\pi \| q)` are jointly convex in the two, so that the resilient problem has
no gap. A parametrisation reaches only points :math:`\theta_i` of the families, such that every
member has one within ν in total variation. That is no convex problem, and has a gap:

.. math::
    P_\nu = \min_i h(D(\theta_i)), \qquad
    D_\nu = \max_{\lambda \ge 0} \min_i \lambda^\top D(\theta_i) - h^*(\lambda)
          = \min_{w \in \Delta} h\Big(\sum_i w_i D(\theta_i)\Big)

The second form of the dual is convex duality over the weights w; with
:math:`h = \frac\alpha2 \|u\|^2` it is the shortest vector in a polytope, solved by non-negative
least squares. The bound has the shape of the one of constrained learning, multipliers times
Lipschitz constants times ν,

.. math:: 0 \le P_\nu - D_\nu \le \sum_j \lambda_j L_j \nu

with :math:`\lambda` the slopes of :math:`h` at the reachable point nearest to the convex optimum,
and :math:`L_j` the largest change of :math:`D_j` along both segments, in units of ν. It follows
from :math:`D_\nu \ge P_0`, the value of the convex problem, and the convexity of :math:`h`.

References:
    | Constrained Learning with Non-Convex Losses (Chamon et al., 2022), arXiv 2103.05134, theorem 1
    | Resilient Constrained Learning (Hounie, Ribeiro and Chamon, 2023), arXiv 2306.02426
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize, nnls

from ..costs import QuadraticCost
from ..duals import ResilientDual
from ..plotting import PALETTE, style
from .claims import Claim, judge
from .figures import save

__all__ = [
    "Gap",
    "divergences",
    "dual_by_ascent",
    "duality_gap",
    "plot",
    "reachable",
    "run",
    "solve_convex",
    "worst_gap",
]

_TRUTH = np.array([0.5, 0.3, 0.2])
# Ends of the segments: the flow's family and the proxy's.
_FLOW = np.array([[0.78, 0.18, 0.04], [0.62, 0.02, 0.36]])
_PROXY = np.array([[0.38, 0.58, 0.04], [0.10, 0.30, 0.60]])
_STIFFNESS = 1.0


class Gap(NamedTuple):
    """Primal and dual values of a parametrisation of richness ν, and the bound on their gap."""

    richness: float
    primal: float
    dual: float
    bound: float
    offset_flow: float
    offset_proxy: float


def divergences(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return D1, D2 and D3, shape (n, 3), at positions s and t, each (n,), on the two segments."""
    p, q = _on(_FLOW, s), _on(_PROXY, t)
    return np.stack((_kl(_TRUTH, p), _kl(p, q), _kl(_TRUTH, q)), axis=-1)


def _on(segment: np.ndarray, position: np.ndarray) -> np.ndarray:
    position = np.asarray(position, dtype=float)[..., None]
    return (1 - position) * segment[0] + position * segment[1]


def _kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * np.log(a / b)).sum(axis=-1)


def solve_convex() -> tuple[float, np.ndarray]:
    """Return the value of the convex problem, and the positions (s, t) of its solution."""

    def objective(z: np.ndarray) -> float:
        return float(_price(divergences(z[:1], z[1:])[0]))

    found = minimize(objective, [0.5, 0.5], bounds=[(0, 1)] * 2, options={"ftol": 1e-15})
    return float(found.fun), found.x


def _price(slacks: np.ndarray) -> np.ndarray:
    return 0.5 * _STIFFNESS * (slacks**2).sum(axis=-1)


def reachable(num_pieces: int, offset: float) -> np.ndarray:
    """Return positions on a segment: its ends, and points an equal distance apart.

    Args:
        num_pieces: One over that distance.
        offset: Where the points lie, as a fraction of it.
    """
    points = (np.arange(-1, num_pieces + 1) + offset) / num_pieces
    return np.unique(points.clip(0, 1))


def duality_gap(num_pieces: int, offsets: tuple[float, float] = (0.5, 0.5)) -> Gap:
    """Solve primal and dual exactly for one parametrisation.

    Args:
        num_pieces: Points on each segment, about.
        offsets: Where they lie on the segments of flow and proxy.
    """
    s, t, D = _table(num_pieces, offsets)
    half = 0.5 / num_pieces
    return Gap(
        richness=half * max(_total_variation(_FLOW), _total_variation(_PROXY)),
        primal=float(_price(D).min()),
        dual=float(_price(_shortest(D))),
        bound=_bound(s, t, D, half),
        offset_flow=offsets[0],
        offset_proxy=offsets[1],
    )


def _table(num_pieces: int, offsets: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Return all reachable (s, t), each (n,), and their divergences (n, 3)."""
    axes = (reachable(num_pieces, offset) for offset in offsets)
    s, t = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    return s, t, divergences(s, t)


def worst_gap(num_pieces: int, offsets: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)) -> Gap:
    """Return the largest gap over parametrisations of one richness.

    Where a point happens to lie at the optimum there is no gap, at any richness.
    """
    gaps = [duality_gap(num_pieces, (one, other)) for one, other in product(offsets, offsets)]
    return max(gaps, key=lambda gap: gap.primal - gap.dual)


def _total_variation(segment: np.ndarray) -> float:
    return 0.5 * float(np.abs(segment[0] - segment[1]).sum())


def _shortest(D: np.ndarray) -> np.ndarray:
    """Return the shortest vector in the convex hull of the rows, shape (3,)."""
    # w >= 0 with sum(w) = 1 by least squares: the direction of w does not depend on the scale of
    # the row of ones, so that normalising it afterwards is exact.
    stacked = np.vstack((D.T, np.ones(len(D))))
    w, _ = nnls(stacked, np.array([0.0, 0.0, 0.0, 1.0]), maxiter=100 * len(D))
    return (w / w.sum()) @ D


def _bound(s: np.ndarray, t: np.ndarray, D: np.ndarray, half: float) -> float:
    """Return the bound on the gap: how much the price rises to the nearest reachable point."""
    _, (s_best, t_best) = solve_convex()
    nearest = int(np.argmin(np.maximum(np.abs(s - s_best), np.abs(t - t_best))))
    # h is convex: h(D_near) - h(D*) <= h'(D_near) (D_near - D*), and D is Lipschitz.
    multipliers = _STIFFNESS * D[nearest]
    return float(multipliers @ _slopes() * half)


@cache
def _slopes() -> np.ndarray:
    """Return the largest slope of each divergence along s plus that along t, shape (3,)."""
    fine = np.linspace(0, 1, 201)
    s, t = np.meshgrid(fine, fine, indexing="ij")
    values = divergences(s.ravel(), t.ravel()).reshape(201, 201, 3)
    return sum(np.abs(np.diff(values, axis=axis)).max(axis=(0, 1)) * 200 for axis in (0, 1))


def dual_by_ascent(num_pieces: int, offsets: tuple[float, float], steps: int = 4000) -> float:
    """Return the value of the dual function where our ascent ends: its mean multipliers.

    Every model step is exact: the point with the least weighted sum of divergences. Multipliers
    that jump between points average to those of the mixture.
    """
    dual = ResilientDual([QuadraticCost(_STIFFNESS)] * 3, rate=0.01)
    values = torch.from_numpy(_table(num_pieces, offsets)[2])
    state, total = dual.init(), torch.zeros(3, dtype=torch.float64)
    for step in range(steps):
        best = values[(values @ state.multipliers).argmin()]
        state = dual.step(state, best)
        if step >= steps // 2:
            total += state.multipliers
    mean = total / (steps - steps // 2)
    conjugate = float((mean**2).sum()) / (2 * _STIFFNESS)
    return float((values @ mean).min()) - conjugate


def run(out: Path, *, quick: bool = False) -> list[Claim]:
    """Solve for several ν; write `theorem.csv` and `theorem.png`; return the claims.

    Raises:
        ValueError: If the folder has a table of other ν.
    """
    counts = (2, 4, 8) if quick else (2, 3, 4, 6, 8, 12, 16, 24, 32)
    there = out / "theorem.csv"
    if there.exists() and len(pd.read_csv(there)) != len(counts):
        raise ValueError(f"{there} is of other grids than {counts}: choose another --out.")
    gaps = [worst_gap(num) for num in counts]
    table = pd.DataFrame(gaps)
    table["gap"] = table["primal"] - table["dual"]
    table["ascent"] = [
        dual_by_ascent(num, (gap.offset_flow, gap.offset_proxy))
        for num, gap in zip(counts, gaps, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(there, index=False)
    save(plot(table), out / "theorem.png")
    positive = table[table["gap"] > 1e-12]
    slope = np.polyfit(np.log(positive["richness"]), np.log(positive["gap"]), 1)[0]
    off = float((table["dual"] - table["ascent"]).abs().max())
    worst, last = table.loc[table["gap"].idxmax()], table.iloc[-1]
    return [
        judge(
            "theorem",
            "the duality gap vanishes with ν, at least as fast as a multiple of ν",
            {
                "gap below the bound at every ν": bool((table["gap"] <= table["bound"]).all()),
                f"gap falls at least like ν (power {slope:.2f})": slope >= 1,
                f"our ascent ends at the dual's value (off by at most {off:.1e})": off < 1e-4,
            },
            f"largest gap {worst['gap']:.1e} at ν = {worst['richness']:.3f}, {last['gap']:.1e} at "
            f"ν = {last['richness']:.3f}; value of the convex problem {solve_convex()[0]:.4f}",
        )
    ]


def plot(table: pd.DataFrame) -> Figure:
    """Return the figure: gap and bound against ν."""
    with style():
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        ax = figure.subplots()
        shown = table[table["gap"] > 1e-12]
        ax.loglog(table["richness"], table["bound"], "--", color="0.5", label="bound")
        ax.loglog(
            shown["richness"],
            shown["gap"],
            "o-",
            color=PALETTE[0],
            label="measured gap, worst of 25 grids",
        )
        ax.set(xlabel="richness ν (total variation)", ylabel="duality gap")
        ax.legend()
    return figure
