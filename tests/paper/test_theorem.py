"""Duality gap on a finite convex family: exact values, the bound, and our ascent."""

import numpy as np
import pytest
from scipy.optimize import minimize

from sbi_jeffreys.paper import theorem

OFFSETS = [(0.5, 0.5), (0.1, 0.7), (0.9, 0.3)]


def test_divergences_are_kl_and_convex():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 200)), rng.random((2, 200))
    D = theorem.divergences(*one)
    assert (D > 0).all()  # neither family contains the truth, nor do they meet
    p = (1 - one[0, 0]) * theorem._FLOW[0] + one[0, 0] * theorem._FLOW[1]
    assert D[0, 0] == pytest.approx((theorem._TRUTH * np.log(theorem._TRUTH / p)).sum())
    middle = theorem.divergences(*((one + other) / 2))
    assert (middle <= (D + theorem.divergences(*other)) / 2 + 1e-12).all()


def test_reachable_positions_cover_the_segment():
    for num in (2, 5, 16):
        for offset in (0.1, 0.5, 0.9):
            positions = theorem.reachable(num, offset)
            assert positions[0] == 0
            assert positions[-1] == 1
            assert np.diff(positions).max() <= 1 / num + 1e-12


@pytest.mark.parametrize("num", [2, 5, 16])
def test_richness_is_the_largest_distance_from_a_reachable_point(num):
    everywhere = np.linspace(0, 1, 1001)[:, None]
    variation = max(
        0.5 * np.abs(ends[0] - ends[1]).sum() for ends in (theorem._FLOW, theorem._PROXY)
    )
    distances = [
        variation * np.abs(everywhere - theorem.reachable(num, offset)).min(axis=1).max()
        for offset in (0.1, 0.5, 0.9)
    ]
    richness = theorem.duality_gap(num).richness
    # Positions are looked at a thousandth of the segment apart.
    assert max(distances) == pytest.approx(richness, abs=1e-3)
    assert max(distances) <= richness + 1e-12


def dual_by_solver(D):
    """Return max over lambda of min_i lambda.D_i - |lambda|^2 / 2, by a general solver."""
    found = minimize(
        lambda z: -(z[3] - 0.5 * (z[:3] ** 2).sum()),
        [0.1, 0.1, 0.1, 0.0],
        jac=lambda z: np.array([*z[:3], -1.0]),
        bounds=[(0, None)] * 3 + [(None, None)],
        constraints={
            "type": "ineq",
            "fun": lambda z: D @ z[:3] - z[3],
            "jac": lambda z: np.hstack((D, -np.ones((len(D), 1)))),
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return -found.fun


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("num", [2, 4, 7])
def test_dual_value_against_another_solver(num, offsets):
    D = theorem._table(num, offsets)[2]
    gap = theorem.duality_gap(num, offsets)
    assert gap.dual == pytest.approx(dual_by_solver(D), abs=1e-7)
    assert gap.primal == pytest.approx(0.5 * (D**2).sum(axis=1).min())


@pytest.mark.parametrize("num", [2, 3, 5, 8, 13])
def test_gap_lies_between_zero_and_the_bound(num):
    convex, _ = theorem.solve_convex()
    gap = theorem.worst_gap(num)
    assert gap.primal >= gap.dual >= convex - 1e-9
    assert 1e-7 < gap.primal - gap.dual < gap.bound


def test_convex_problem_has_no_gap():
    # The limit of the parametrisations: primal and dual both go to the convex value.
    convex, (s, t) = theorem.solve_convex()
    assert 0.05 < s < 0.95  # an interior solution, or the grid's ends would give it away
    assert 0.05 < t < 0.95
    gap = theorem.duality_gap(60)
    assert gap.primal == pytest.approx(convex, abs=2e-4)
    assert gap.dual == pytest.approx(convex, abs=2e-4)


def test_gap_falls_with_richness():
    wide, narrow = theorem.worst_gap(2), theorem.worst_gap(16)
    ratio = wide.richness / narrow.richness
    assert ratio == pytest.approx(8)
    # At least linearly, as the bound says.
    assert (wide.primal - wide.dual) / (narrow.primal - narrow.dual) > ratio


@pytest.mark.parametrize("offsets", OFFSETS[:2])
def test_our_ascent_finds_the_dual_value(offsets):
    # Averaged multipliers of a constant step: off by about the step, 0.01, times the gap.
    assert theorem.dual_by_ascent(3, offsets) == pytest.approx(
        theorem.duality_gap(3, offsets).dual, abs=1e-4
    )


def test_a_table_of_other_grids_is_not_overwritten(tmp_path):
    theorem.run(tmp_path, quick=True)
    before = (tmp_path / "theorem.csv").read_text()
    with pytest.raises(ValueError, match=r"theorem.csv is of other grids.*another --out"):
        theorem.run(tmp_path)
    assert (tmp_path / "theorem.csv").read_text() == before
    theorem.run(tmp_path, quick=True)
