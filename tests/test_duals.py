"""The resilient dual against an independent solver, and the prices against finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import NonlinearConstraint, minimize

from sbi_jeffreys.costs import HuberCost, LinearCost, QuadraticCost
from sbi_jeffreys.duals import (
    DualState,
    FixedWeights,
    ResilientDual,
    is_maximum_likelihood,
    settled,
    weighting,
)

COSTS = [
    pytest.param(LinearCost(), id="linear"),
    pytest.param(LinearCost(2.5), id="linear 2.5"),
    pytest.param(QuadraticCost(), id="quadratic"),
    pytest.param(QuadraticCost(0.3), id="quadratic 0.3"),
    pytest.param(HuberCost(1.0, 3.0), id="Huber"),
    pytest.param(HuberCost(2.0, 0.5), id="Huber 2, 0.5"),
]
CURVED = COSTS[2:]
# Requirements ½ |v - a_i|² <= u_i that no v can meet with u = 0.
ANCHORS = torch.tensor([[0.0, 0.0], [2.0, 0.5], [-0.5, 1.5]], dtype=torch.float64)


def distances(v):
    return 0.5 * (v - ANCHORS).square().sum(dim=-1)


def price(costs, u):
    u = torch.as_tensor(u, dtype=torch.float64)
    return sum(float(cost.value(slack)) for cost, slack in zip(costs, u, strict=True))


def solve(costs):
    """Minimise the price over (v, u) by scipy; return v, u and the multipliers."""

    def constraint(vu):
        return distances(torch.from_numpy(vu[:2])).numpy() - vu[2:]

    def jacobian(vu):
        return np.hstack((vu[:2] - ANCHORS.numpy(), -np.eye(3)))

    def slopes(vu):
        u = torch.from_numpy(vu[2:])
        h = [float(cost.slope(slack)) for cost, slack in zip(costs, u, strict=True)]
        return np.concatenate((np.zeros(2), h))

    found = minimize(
        lambda vu: price(costs, vu[2:]),
        np.concatenate((np.zeros(2), np.full(3, 3.0))),
        jac=slopes,
        method="trust-constr",
        constraints=NonlinearConstraint(constraint, -np.inf, 0.0, jac=jacobian),
        options={"gtol": 1e-9, "xtol": 1e-12, "barrier_tol": 1e-10, "maxiter": 3000},
    )
    return found.x[:2], found.x[2:], found.v[0]


@pytest.mark.filterwarnings("ignore:delta_grad == 0.0:UserWarning")  # linear parts, no curvature
@pytest.mark.parametrize(
    "costs",
    [
        pytest.param((QuadraticCost(), QuadraticCost(), QuadraticCost()), id="quadratic"),
        pytest.param((QuadraticCost(0.5), QuadraticCost(2), QuadraticCost(1)), id="stiffnesses"),
        pytest.param((LinearCost(), LinearCost(0.5), LinearCost(2.0)), id="linear"),
        pytest.param((LinearCost(), HuberCost(2.0, 20.0), LinearCost()), id="Huber, inside"),
        pytest.param((LinearCost(), HuberCost(4.0, 1.5), LinearCost()), id="Huber, at its bound"),
        pytest.param((HuberCost(1.0, 0.7), QuadraticCost(3.0), LinearCost(0.4)), id="mixed"),
    ],
)
def test_dual_ascent_finds_the_optimum_of_the_slack_formulation(costs):
    dual = ResilientDual(costs, rate=0.1)
    state = dual.init()
    v = torch.zeros(2, dtype=torch.float64)
    for _ in range(600):
        # The gradient of the weighted sum of the distances.
        v = v - 0.1 * state.multipliers @ (v - ANCHORS)
        state = dual.step(state, distances(v))

    v_scipy, u_scipy, multipliers = solve(costs)
    # What scipy's interior point leaves at its tolerances (measured below 1e-6).
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(v, torch.from_numpy(v_scipy), **close)
    torch.testing.assert_close(state.multipliers, torch.from_numpy(multipliers), **close)
    torch.testing.assert_close(state.slacks, torch.from_numpy(u_scipy), **close)


@pytest.mark.parametrize("cost", COSTS)
def test_fixed_point_is_the_slope_at_the_divergence(cost):
    divergences = torch.tensor([0.0, 0.05, 0.4, 2.0, 40.0], dtype=torch.float64).repeat(2)
    dual = ResilientDual((cost,) * 10, rate=0.25, initial=[0.1] * 5 + [2.9] * 5)
    state = dual.init()
    for _ in range(250):
        state = dual.step(state, divergences)
    # The slowest contraction here is 1 - 0.25 / 2 per step: 1e-13 after 250 of them.
    torch.testing.assert_close(state.multipliers, cost.slope(divergences), rtol=0, atol=1e-9)


@pytest.mark.parametrize("cost", COSTS)
def test_slope_is_the_derivative_of_value(cost):
    u, step = torch.tensor([0.01, 0.11, 0.5, 1.7, 2.9, 3.1, 8.0], dtype=torch.float64), 1e-6
    difference = (cost.value(u + step) - cost.value(u - step)) / (2 * step)
    # Second-order difference of numbers of order 10: rounding 1e-9, truncation less.
    torch.testing.assert_close(cost.slope(u), difference, rtol=0, atol=1e-8)
    assert cost.value(torch.zeros(1, dtype=torch.float64)) == 0


@pytest.mark.parametrize("cost", COSTS)
def test_price_is_convex_and_increasing(cost):
    u = torch.linspace(0, 10, 501, dtype=torch.float64)
    assert (cost.slope(u).diff() >= 0).all()
    assert (cost.slope(u[1:]) > 0).all()


@pytest.mark.parametrize("cost", CURVED)
def test_slack_is_the_inverse_of_the_slope(cost):
    u = torch.tensor([0.0, 0.05, 0.2], dtype=torch.float64)  # below every knee in the table
    multiplier = cost.slope(u)
    torch.testing.assert_close(cost.slack(multiplier, torch.full_like(u, 9.0)), u)
    torch.testing.assert_close(cost.slope(cost.slack(multiplier, u)), multiplier)


def test_slack_where_many_have_the_slope():
    divergence = torch.tensor([0.1, 5.0], dtype=torch.float64)
    at_bound = torch.full((2,), 3.0, dtype=torch.float64)
    # Linear: any slack is stationary, the tightest is the divergence. Huber: only those past
    # the knee, at 3 here, are.
    torch.testing.assert_close(LinearCost(3.0).slack(at_bound, divergence), divergence)
    expected = torch.tensor([3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(HuberCost(1.0, 3.0).slack(at_bound, divergence), expected)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (LinearCost(2.0), [2.0, 2.0, 2.0]),
        (QuadraticCost(2.0), [0.0, 0.5, 100.0]),
        (HuberCost(2.0, 4.0), [0.0, 0.5, 4.0]),
    ],
)
def test_projection_onto_the_slopes(cost, expected):
    multipliers = torch.tensor([-1.0, 0.5, 100.0], dtype=torch.float64)
    projected = cost.project(multipliers)
    torch.testing.assert_close(projected, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(cost.project(projected), projected)


def test_multipliers_stay_within_the_slopes_under_wild_divergences():
    dual = ResilientDual((LinearCost(1.5), HuberCost(1.0, 3.0), QuadraticCost(1.0)), rate=0.5)
    state = dual.init()
    for _ in range(200):
        state = dual.step(state, 1e3 * torch.randn(3))
        assert state.multipliers[0] == 1.5
        assert 0 <= state.multipliers[1] <= 3
        assert state.multipliers[2] >= 0


def test_multiplier_leaves_its_bound_when_the_divergence_falls():
    dual = ResilientDual((HuberCost(1.0, 3.0),) * 3, rate=0.1)
    state = dual.init()
    for _ in range(200):
        state = dual.step(state, torch.full((3,), 50.0))
    assert (state.multipliers == 3).all()
    state = dual.step(state, torch.full((3,), 1.0))
    torch.testing.assert_close(
        state.multipliers, torch.full((3,), 3.0 + 0.1 * (1.0 - 3.0), dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_divergences_that_are_not_finite_change_nothing(bad):
    dual = ResilientDual((LinearCost(), HuberCost(1.0, 3.0), QuadraticCost()))
    before = dual.step(dual.init(), torch.tensor([2.0, 0.7, 0.3]))
    for position in range(3):
        divergences = torch.tensor([2.0, 0.9, 0.1])
        good = dual.step(before, divergences)
        divergences[position] = bad
        after = dual.step(before, divergences)
        for old, ok, new in zip(before, good, after, strict=True):
            assert new[position] == old[position]
            others = torch.arange(3) != position
            assert (new[others] == ok[others]).all()


def test_multipliers_are_numbers_to_the_models():
    dual = ResilientDual((QuadraticCost(),) * 3)
    divergences = torch.ones(3, requires_grad=True)
    state = dual.step(dual.init(), divergences)
    assert not state.multipliers.requires_grad
    assert not state.slacks.requires_grad
    assert state.multipliers.dtype == torch.float64


def test_initial_multipliers_are_projected_and_have_their_slacks():
    dual = ResilientDual(
        (LinearCost(2.0), HuberCost(1.0, 3.0), QuadraticCost(4.0)), initial=(7.0, 7.0, 2.0)
    )
    state = dual.init()
    torch.testing.assert_close(
        state.multipliers, torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    )
    torch.testing.assert_close(state.slacks[1:], torch.tensor([3.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1, 0, 0), (0.2, 3.0, 1.0)])
def test_fixed_weights_never_move(weights):
    fixed = FixedWeights(weights)
    state = fixed.init()
    for divergences in (torch.zeros(3), torch.full((3,), 1e6), torch.full((3,), math.nan)):
        state = fixed.step(state, divergences)
        assert state.multipliers.tolist() == list(weights)


@pytest.mark.parametrize(
    ("name", "kind", "costs"),
    [
        ("dual", ResilientDual, [LinearCost, HuberCost, LinearCost]),
        ("dual_quadratic", ResilientDual, [QuadraticCost] * 3),
        ("fixed", FixedWeights, None),
        ("ml", FixedWeights, None),
    ],
)
def test_weighting_by_name(name, kind, costs):
    found = weighting(name)
    assert isinstance(found, kind)
    state = found.init()
    assert isinstance(state, DualState)
    assert state.multipliers.shape == state.slacks.shape == (3,)
    assert state.multipliers.dtype == torch.float64
    assert state.multipliers[0] == 1
    if costs is None:
        assert state.multipliers.tolist() == {"fixed": [1, 1, 1], "ml": [1, 0, 0]}[name]
    else:
        assert [type(cost) for cost in found.costs] == costs
        assert (state.multipliers > 0).all()


def test_the_default_dual_never_lets_the_data_terms_die():
    dual = weighting("dual")
    state = dual.init()
    for divergences in ([-50.0, 0.0, -50.0], [0.0, 4.0, 0.0], [1e3, 1e-3, 1e3]):
        for _ in range(50):
            state = dual.step(state, torch.tensor(divergences))
        assert state.multipliers[[0, 2]].tolist() == [1.0, 1.0]


def test_a_weighting_is_returned_as_it_is():
    dual = ResilientDual((LinearCost(),) * 3)
    assert weighting(dual) is dual


class OnlyInit:
    def init(self):
        return None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weighting("lagrange"), ValueError, "lagrange.*'dual'"),
        (lambda: weighting(""), ValueError, "Unknown objective"),
        (lambda: weighting(None), TypeError, "init.*step.*None"),
        (lambda: weighting(3.0), TypeError, "init.*step"),
        (lambda: weighting((1.0, 1.0, 1.0)), TypeError, "init.*step"),
        (lambda: weighting(OnlyInit()), TypeError, "init.*step"),
        (lambda: QuadraticCost(0.0), ValueError, "stiffness.*0.0"),
        (lambda: QuadraticCost(-1.0), ValueError, "stiffness.*-1.0"),
        (lambda: QuadraticCost(math.inf), ValueError, "stiffness.*inf"),
        (lambda: QuadraticCost(math.nan), ValueError, "stiffness.*nan"),
        (lambda: QuadraticCost("2"), TypeError, "stiffness.*'2'"),
        (lambda: HuberCost(stiffness=0.0), ValueError, "stiffness.*0.0"),
        (lambda: HuberCost(bound=-3.0), ValueError, "bound.*-3.0"),
        (lambda: LinearCost(0.0), ValueError, "rate.*0.0"),
        (lambda: ResilientDual((LinearCost(),) * 3, rate=0.0), ValueError, "rate.*0.0"),
        (lambda: ResilientDual((LinearCost(),) * 3, rate=-0.1), ValueError, "rate.*-0.1"),
        (lambda: ResilientDual((LinearCost(),) * 3, initial=(1.0,)), ValueError, "1 .* 3 costs"),
        (
            lambda: ResilientDual((LinearCost(),) * 3, initial=(1.0, math.nan, 1.0)),
            ValueError,
            "initial.*nan",
        ),
        (lambda: ResilientDual((LinearCost(),) * 3, initial=(1, -1, 1)), ValueError, "initial.*-1"),
        (lambda: FixedWeights(("a", 1.0, 1.0)), TypeError, "weights must be a number, got 'a'"),
        (lambda: ResilientDual((LinearCost(),) * 3, initial=3.0), TypeError, "initial.*3.0"),
        (lambda: ResilientDual((1.0, 2.0, 3.0)), TypeError, "prices, such as LinearCost.*1.0"),
        (lambda: FixedWeights(3.0), ValueError, "three numbers, got 3.0"),
        (lambda: FixedWeights((1.0, 1.0)), ValueError, "three"),
        (lambda: FixedWeights((1.0,) * 4), ValueError, "three"),
        (lambda: FixedWeights((1.0, -1.0, 1.0)), ValueError, "-1.0"),
        (lambda: FixedWeights((math.nan, 1.0, 1.0)), ValueError, "nan"),
        (lambda: FixedWeights((1.0, math.inf, 1.0)), ValueError, "inf"),
        (lambda: FixedWeights((0.0, 1.0, 0.0)), ValueError, "without data"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("rate", [0.05, 0.01])
@pytest.mark.parametrize("cost", COSTS)
def test_multipliers_settle_at_the_slope_of_the_price(cost, rate):
    dual = ResilientDual((cost, cost, cost), rate=rate)
    divergences = torch.tensor([0.01, 0.4, 30.0], dtype=torch.float64)
    state = settled(dual, dual.init(), divergences)
    torch.testing.assert_close(state.multipliers, cost.slope(divergences), rtol=1e-3, atol=1e-3)
    fixed = FixedWeights((1.0, 2.0, 3.0))
    assert settled(fixed, fixed.init(), divergences).multipliers.tolist() == [1.0, 2.0, 3.0]


def test_only_both_weights_of_zero_are_maximum_likelihood():
    found = [is_maximum_likelihood(FixedWeights((1, *w))) for w in ((0, 0), (1, 0), (0, 1))]
    assert found == [True, False, False]
