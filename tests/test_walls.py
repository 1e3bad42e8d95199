"""The soft walls: a bijection onto the whole space that leaves the inside alone."""

import copy
import math

import pytest
import torch
from sbi.inference.trainers.npe import NPE_C
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    Beta,
    ComposeTransform,
    Dirichlet,
    Distribution,
    Exponential,
    ExpTransform,
    Gamma,
    Gumbel,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Pareto,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.metrics import leakage
from sbi_jeffreys.walls import LazyWalls, SoftWalls, support_bounds

INF = torch.inf
BOUNDS = [
    pytest.param(-1.0, 2.0, id="both"),
    pytest.param(-1.0, INF, id="only low"),
    pytest.param(-INF, 2.0, id="only high"),
    pytest.param(-INF, INF, id="none"),
]


def walls(low, high, thickness=0.1, dtype=torch.float64):
    return SoftWalls(*(torch.tensor([v], dtype=dtype) for v in (low, high, thickness)))


def inside(low, high, num=500):
    """Points from a thousandth of a thickness away from the bounds to the middle."""
    near = torch.logspace(-4, 0, num, dtype=torch.float64)
    points = [torch.linspace(-0.9, 1.9, num, dtype=torch.float64)]
    points += [low + near] if low > -INF else [torch.linspace(-100, 0, num, dtype=torch.float64)]
    points += [high - near] if high < INF else [torch.linspace(0, 100, num, dtype=torch.float64)]
    return torch.cat(points)[:, None]


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_inverse(low, high):
    transform = walls(low, high)
    theta = inside(low, high)
    u = transform(theta)
    assert u.isfinite().all()
    # torch's softplus is linear from 20 on: an error of e^-20 thicknesses.
    torch.testing.assert_close(transform.inv(u), theta, rtol=0, atol=3e-10)
    # At most 10 thicknesses past a bound: these e^-20 are e^-10 of the depth there.
    u = torch.linspace(-2, 3, 300, dtype=torch.float64)[:, None]
    torch.testing.assert_close(transform(transform.inv(u)), u, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_log_slope_is_that_of_autograd(low, high):
    transform = walls(low, high)
    theta = inside(low, high).requires_grad_()
    u, ladj = transform.call_and_ladj(theta)
    slope = torch.autograd.grad(u.sum(), theta)[0]
    assert (slope > 0).all()
    # Relative rounding of a slope of up to 1e3.
    torch.testing.assert_close(ladj, slope.log(), rtol=1e-9, atol=1e-11)
    assert (transform.log_abs_det_jacobian(theta, u) == ladj).all()
    assert (transform(theta) == u).all()


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_monotone(low, high):
    theta = inside(low, high).sort(dim=0).values.unique(dim=0)
    assert (walls(low, high)(theta).diff(dim=0) > 0).all()


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_far_inside_it_is_the_identity(low, high):
    theta = torch.linspace(0.0, 1.0, 20, dtype=torch.float64)[:, None]
    u, ladj = walls(low, high, thickness=0.02).call_and_ladj(theta)
    # 50 thicknesses from the nearest bound: e^-50 is 2e-22.
    torch.testing.assert_close(u, theta, rtol=0, atol=1e-15)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-15)


def test_without_bounds_it_is_the_identity_everywhere():
    theta = 1e3 * torch.randn(100, 1, dtype=torch.float64)
    transform = walls(-INF, INF)
    u, ladj = transform.call_and_ladj(theta)
    assert (u == theta).all()
    assert (ladj == 0).all()
    assert (transform.inv(theta) == theta).all()


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_outside_the_density_is_zero(low, high):
    outside = [v for v in (low - 1e3, low - 1e-3, high + 1e-3, high + 1e3) if abs(v) < INF]
    theta = torch.tensor(outside, dtype=torch.float64).reshape(-1, 1)
    u, ladj = walls(low, high).call_and_ladj(theta)
    assert (ladj == -INF).all()
    # A finite u, so that the density is zero and not NaN.
    assert u.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-1.0, 2.0), (-1.0, INF), (-INF, 2.0), (0.0, INF), (0.0, 1.0),
        (1000.0, 1001.0), (1e-4, 2e-4), (-5e5, -4.9e5),
    ],
)  # fmt: skip
def test_draws_stay_strictly_inside_in_float32(low, high, scale):
    width = high - low if high - low < INF else 1.0
    transform = walls(low, high, thickness=0.05 * width, dtype=torch.float32)
    u = torch.tensor([max(low, -1e6) if low > -INF else high]) + scale * width * torch.randn(20_000)
    theta = transform.inv(u[:, None])
    assert theta.dtype == torch.float32
    assert theta.isfinite().all()
    assert (theta > transform.low).all()
    assert (theta < transform.high).all()
    # They have a density, too.
    back, ladj = transform.call_and_ladj(theta)
    assert back.isfinite().all()
    assert ladj.isfinite().all()


def test_every_entry_has_its_own_walls():
    low = torch.tensor([0.0, 0.0, -INF, -INF], dtype=torch.float64)
    high = torch.tensor([1.0, INF, 1.0, INF], dtype=torch.float64)
    thickness = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    theta = torch.rand(10, 4, dtype=torch.float64)
    u, ladj = SoftWalls(low, high, thickness).call_and_ladj(theta)
    for i in range(4):
        alone = walls(low[i].item(), high[i].item(), thickness[i].item())
        expected = alone.call_and_ladj(theta[:, i : i + 1])
        torch.testing.assert_close(u[:, i : i + 1], expected[0])
        torch.testing.assert_close(ladj[:, i : i + 1], expected[1])


def transformed(base, *transforms):
    return TransformedDistribution(base, list(transforms))


NEGATIVE = AffineTransform(3.0, -2.0)
LOG_UNIFORM = Independent(
    transformed(
        Uniform(math.log(0.5) * torch.ones(2), math.log(8.0) * torch.ones(2)), ExpTransform()
    ),
    1,
)
BOX = BoxUniform(-torch.ones(2), torch.ones(2))


@pytest.mark.parametrize(
    ("prior", "low", "high"),
    [
        (None, [-INF] * 2, [INF] * 2),
        (BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 5.0])), [-1, 0], [2, 5]),
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), [-INF] * 2, [INF] * 2),
        (Independent(Normal(torch.zeros(2), 1.0), 1), [-INF] * 2, [INF] * 2),
        (Independent(LogNormal(torch.zeros(2), 1.0), 1), [0, 0], [INF] * 2),
        (Independent(Uniform(torch.zeros(3), torch.ones(3)), 1), [0] * 3, [1] * 3),
        (
            MultipleIndependent(
                [
                    Uniform(-torch.ones(1), torch.ones(1)),
                    MultivariateNormal(torch.zeros(2), torch.eye(2)),
                    Gamma(torch.ones(1), torch.ones(1)),
                    Beta(torch.ones(1), torch.ones(1)),
                ]
            ),
            [-1, -INF, -INF, 0, 0],
            [1, INF, INF, INF, 1],
        ),
        (MultipleIndependent([Exponential(torch.ones(1)), LogNormal(torch.zeros(1), 1.0)]),
         [0, 0], [INF] * 2),
        (MultipleIndependent([transformed(Uniform(torch.ones(1), 2 * torch.ones(1)), NEGATIVE),
                              Exponential(torch.ones(1))]), [-1, 0], [1, INF]),
        # Downwards, and twice.
        (transformed(Exponential(torch.ones(2)), NEGATIVE), [-INF] * 2, [3, 3]),
        (transformed(Normal(torch.zeros(2), 1.0), SigmoidTransform()), [0, 0], [1, 1]),
        (transformed(Normal(torch.zeros(2), 1.0), ComposeTransform([ExpTransform(), NEGATIVE])),
         [-INF] * 2, [3, 3]),
        # No transformation that is monotone has these ends.
        (transformed(Uniform(-torch.ones(2), torch.ones(2)), AbsTransform()), [0, 0], [INF] * 2),
        (Independent(Pareto(torch.full((2,), 2.0), torch.ones(2)), 1), [2, 2], [INF] * 2),
        # Bounded where rounding ends only.
        (Independent(Gumbel(torch.zeros(2), torch.ones(2)), 1), [-INF] * 2, [INF] * 2),
        (RestrictedPrior(BOX, lambda theta: theta[:, 0] > 0, sample_with="rejection"),
         [-1, -1], [1, 1]),
        # A simplex is no product of intervals.
        (Dirichlet(torch.ones(3)), [-INF] * 3, [INF] * 3),
    ],
)  # fmt: skip
def test_support_bounds(prior, low, high):
    found = support_bounds(prior, len(low))
    for bounds, expected in zip(found, (low, high), strict=True):
        assert bounds.dtype == torch.float32
        assert bounds.tolist() == expected


@pytest.mark.parametrize(
    ("prior", "low", "high"),
    [
        (LOG_UNIFORM, 0.5, 8.0),
        (
            transformed(Exponential(torch.ones(2)), NEGATIVE, ExpTransform(), NEGATIVE),
            3 - 2 * math.exp(3.0),
            3.0,
        ),
    ],
)
def test_support_bounds_through_exponentials_are_rounded(prior, low, high):
    for bounds, expected in zip(support_bounds(prior, 2), (low, high), strict=True):
        assert bounds.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_a_flow_ends_where_a_log_uniform_prior_does():
    theta = LOG_UNIFORM.sample((300,))
    x = theta.log() + 0.5 * torch.randn_like(theta)
    flow = flow_nn(LOG_UNIFORM)(theta, x)
    at_the_edge = math.log(7.0) * torch.ones(1, 2)
    drawn = flow.sample(torch.Size((2000,)), at_the_edge)[:, 0]
    assert (LOG_UNIFORM.log_prob(drawn) > -INF).all()
    assert leakage(flow, LOG_UNIFORM, at_the_edge) == 0.0
    # One that knows no bounds leaves it there, although its draws are all positive.
    loose = flow_nn(Independent(LogNormal(torch.zeros(2), 1.0), 1))(theta, x)
    assert leakage(loose, LOG_UNIFORM, at_the_edge) > 0.01


@pytest.mark.parametrize("decades", [5, 8, 12, 20])
def test_thick_walls_hold_many_decades(decades):
    """Down to what float32 resolves above a bound: that is no share of the thickness."""
    low = torch.tensor([10.0**-decades])
    walls = SoftWalls(low, torch.ones(1), torch.tensor([10.0]))
    theta = (10.0 ** torch.linspace(0.1 - decades, -0.1, 200)).unsqueeze(1)
    u, log_slope = walls.call_and_ladj(theta)
    assert (u.diff(dim=0) > 0).all()
    torch.testing.assert_close(walls.inv(u), theta, rtol=1e-3, atol=0.0)
    # du / dtheta = 1 + 1 / (e^(depth below) - 1) + 1 / (e^(depth above) - 1), depths in walls
    depths = (theta.double() - low.double()) / 10, (1 - theta.double()) / 10
    slope = 1 + sum(1 / torch.expm1(depth) for depth in depths)
    torch.testing.assert_close(log_slope.double(), slope.log(), rtol=0.0, atol=1e-3)


ZERO, ONE = torch.zeros(1), torch.ones(1)
OVER_DECADES = {
    "log-uniform, 6": (
        TransformedDistribution(Uniform(torch.tensor([-14.0]), ZERO), ExpTransform()), -11.0
    ),
    "log-uniform, 12": (
        TransformedDistribution(Uniform(torch.tensor([-28.0]), ZERO), ExpTransform()), -25.0
    ),
    "log-normal": (LogNormal(ZERO, 10 * ONE), -10.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OVER_DECADES)
def test_a_flow_over_many_decades_is_a_density(name):
    prior, at = OVER_DECADES[name]
    theta = prior.sample((500,))
    flow = flow_nn(Independent(prior, 1))(theta, theta.log() + 0.5 * torch.randn_like(theta))
    logs = torch.linspace(at - 4, at + 4, 4001).clamp_min(-28.0 if "12" in name else -INF)
    grid = logs.exp().reshape(-1, 1, 1)
    density = (flow.log_prob(grid, torch.full((1, 1), at))[:, 0].double() + logs).exp()
    # Of the logarithm, by trapezoids; the start is a Gaussian of theirs.
    assert torch.trapezoid(density, logs.double()).item() == pytest.approx(1.0, abs=0.01)
    drawn = flow.sample(torch.Size((2000,)), torch.full((1, 1), at))[:, 0, 0].log().sort().values
    # Kolmogorov and Smirnov: above 0.045 in one of a thousand sets of 2,000 draws.
    below = torch.cumulative_trapezoid(density, logs.double())
    found = below[torch.searchsorted(logs, drawn).clamp(1, len(below)) - 1]
    assert (found - torch.arange(1, 2001) / 2000).abs().max() < 0.045


def test_walls_stand_behind_a_grid_that_ends_at_the_bounds():
    """They would make a spike of density of its ends."""
    ends = torch.linspace(-1, 1, 15)
    grid = torch.cartesian_prod(ends, ends)
    x = grid + 0.1 * torch.randn_like(grid)
    density = -flow_nn(BOX)(grid, x).log_prob(grid[None], x)[0]
    on_bounds = (grid.abs() == 1).any(dim=1)
    # The noise is that of all others; behind walls at the bounds they differ by three nats.
    assert (density[on_bounds].mean() - density[~on_bounds].mean()).abs() < 0.5
    # One in a hundred may lie there by rounding, and the walls where they were.
    few = torch.cat((grid[:1], 0.9 * grid[1:]))
    assert leakage(flow_nn(BOX)(few, x), BOX, x[:5]).max() == 0.0


class WithoutSupport(Distribution):
    """Knows its density, not its support."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)


def test_support_bounds_of_a_prior_that_does_not_say():
    low, high = support_bounds(WithoutSupport(), 2)
    assert (low == -INF).all()
    assert (high == INF).all()


def test_support_bounds_of_the_prior_that_sbi_has_processed():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    processed = NPE_C(prior)._prior
    low, high = support_bounds(processed, 2)
    assert low.tolist() == [-1, -1]
    assert high.tolist() == [1, 1]


def test_support_bounds_own_their_memory():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    low, _ = support_bounds(prior, 2)
    low.fill_(-9.0)
    assert support_bounds(prior, 2)[0].tolist() == [-1, -1]


def test_within_a_wall_thicker_than_all_parameters_it_is_a_logarithm():
    transform = walls(0.0, INF, thickness=10.0)
    theta = torch.logspace(-8, 0, 100, dtype=torch.float64)[:, None]
    u, log_slope = transform.call_and_ladj(theta)
    expected = 10 * (theta / 10).log()
    # Up to half of theta and a thousandth of its square; the slope 1 / z, z = theta / 10, of a
    # logarithm becomes 1 + 1 / (e^z - 1).
    torch.testing.assert_close(u, expected + theta / 2, atol=5e-3, rtol=0)
    torch.testing.assert_close(log_slope, (10 / theta).log(), atol=0.06, rtol=0)
    torch.testing.assert_close(transform.inv(u), theta, rtol=1e-6, atol=0)
    single = SoftWalls(*(torch.tensor([v]) for v in (0.0, INF, 10.0)))
    torch.testing.assert_close(single.inv(single(theta.float())), theta.float(), rtol=1e-4, atol=0)


def test_walls_of_a_flow_know_what_walls_know():
    """Also after others were loaded into them, where a recording would read them, and copied."""
    bounds = [torch.tensor([0.0, -1.0, -INF, 3.0]), torch.tensor([1.0, INF, 2.0, 3.5])]
    thickness = torch.tensor([0.1, 0.2, 0.3, 1e6])
    theta = torch.tensor([[1e-9, -0.999, 1.9, 3.1], [0.5, 7.0, -3.0, 3.4999]])
    lazy = LazyWalls(torch.zeros(4), torch.ones(4), torch.ones(4))
    where = lazy.nearest.data_ptr()
    lazy.load_state_dict(LazyWalls(*bounds, thickness).state_dict())
    assert lazy.nearest.data_ptr() == where
    assert set(lazy.state_dict()) == {"_0", "_1", "_2"}
    expected = SoftWalls(*bounds, thickness)
    for walls_there in (lazy(), copy.deepcopy(lazy)(), lazy(torch.zeros(2))):
        for found, value in zip(
            walls_there.call_and_ladj(theta), expected.call_and_ladj(theta), strict=True
        ):
            assert torch.equal(found, value)
        assert torch.equal(walls_there.inv(theta), expected.inv(theta))


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_what_walls_know_follows_their_type(kinds):
    """The number next to a bound is another one; a draw on the bound has no density."""
    before, after = kinds
    bounds = torch.tensor([0.0, -1.0]), torch.tensor([1.0, 1e6]), torch.tensor([0.1, 1e7])
    lazy = LazyWalls(*(b.to(before) for b in bounds)).to(after)
    far = torch.tensor([[-1e9, -1e9], [1e9, 1e12]], dtype=after)
    expected = SoftWalls(*(b.to(after) for b in bounds))
    assert torch.equal(lazy().inv(far), expected.inv(far))
    assert ((lazy().inv(far) > bounds[0]) & (lazy().inv(far) < bounds[1])).all()
    theta = torch.tensor([[1e-7, -1 + 1e-6]], dtype=after)
    for found, value in zip(
        lazy().call_and_ladj(theta), expected.call_and_ladj(theta), strict=True
    ):
        assert torch.equal(found, value)


def test_walls_are_loaded_in_place_of_others():
    """``assign=True`` puts tensors of another type or device in the place of those there."""
    there = LazyWalls(torch.zeros(2), torch.ones(2), torch.ones(2)).to("meta")
    state = LazyWalls(*(torch.full((2,), v, dtype=torch.float64) for v in (-3.0, 5.0, 0.1)))
    there.load_state_dict(state.state_dict(), assign=True)
    u = torch.tensor([[-50.0, 50.0]], dtype=torch.float64)
    assert torch.equal(there().inv(u), state().inv(u))
