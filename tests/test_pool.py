"""The pool of flow and proxy: its bound, its normaliser, its draws."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from pools import FLOW, PRIOR, Constant, GaussianEnergy, default, gaussians, pooled
from sbi.neural_nets import posterior_nn
from torch import nn
from torch.distributions import Independent, Normal

from sbi_jeffreys import embedded_flow, pool
from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn

# The flow is known at any x, however far from those that it was built with.
FAR = pytest.mark.filterwarnings("ignore:.* lie far from all training data:UserWarning")


def test_the_pool_of_gaussians_is_their_geometric_mean():
    weight = 0.5
    mean, scale = pooled(weight)
    estimator = gaussians(weight)
    x = torch.randn(3, 2)
    theta = x + mean + scale * torch.randn(50, 3, 2)
    expected = Normal(x + mean, scale).log_prob(theta).sum(-1)
    # 256 draws, whose weights vary by a quarter, normalise each: five standard errors.
    tolerance = 5 * 0.25 / 256**0.5
    assert torch.allclose(estimator.log_prob(theta, x), expected, atol=tolerance)


def test_draws_are_those_of_the_density():
    weight, num = 0.5, 20_000
    mean, scale = pooled(weight)
    x = torch.tensor([[0.0, 0.0], [3.0, -1.0]])
    drawn = gaussians(weight).sample(torch.Size((num,)), x)
    assert drawn.shape == (num, 2, 2)
    # Five standard errors of a mean, and of a standard deviation.
    assert torch.allclose(drawn.mean(0), x + mean, atol=5 * scale / num**0.5)
    assert torch.allclose(drawn.std(0), torch.tensor(scale), atol=5 * scale / (2 * num) ** 0.5)
    # All of them are different ones.
    assert len(drawn[:, 0].unique(dim=0)) == num


def test_the_bound_keeps_a_share_of_all_draws():
    tilts = 5 * torch.randn(2000, 4)
    level = pool.level_of(tilts)
    kept = (level.log_normalizer - level.bound).exp()
    # A quarter, and of what is three nats below the bound and more e^-3.
    below = (tilts < level.bound - 3).float().mean(0)
    assert (kept >= 0.25).all()
    assert torch.allclose(kept, 0.25 + below * math.exp(-3), atol=0.01)
    by_hand = tilts.minimum(level.bound).maximum(level.bound - 3).exp().mean(0).log()
    assert torch.allclose(level.log_normalizer, by_hand, atol=1e-4)


@pytest.mark.parametrize("scale", [1000.0, 1e5])
def test_the_bound_does_so_where_tilts_range_beyond_what_exponentials_can_hold(scale):
    level = pool.level_of(scale * torch.randn(1024, 2).double())
    kept = (level.log_normalizer - level.bound).exp()
    assert ((kept >= 0.25) & (kept < 0.3)).all()


def test_the_bound_is_the_highest_tilt_where_that_keeps_more():
    tilts = 0.1 * torch.randn(500, 3)
    level = pool.level_of(tilts)
    assert torch.equal(level.bound, tilts.max(0).values)
    assert torch.allclose(level.log_normalizer, tilts.exp().mean(0).log(), atol=1e-6)
    assert pool.level_of(torch.full((7, 1), -300.0)).log_normalizer == -300.0


def test_a_bounded_pool_is_normalised_and_drawn_from():
    # Ten scales apart: a share of 0.25 bounds the tilt, and the proxy has a limited say.
    estimator = gaussians(0.5, shift=5.0)
    x = torch.zeros(1, 2)
    level = estimator.last_level.at(estimator, x)
    assert 0.25 <= (level.log_normalizer - level.bound).exp().item() < 0.3
    axis = torch.linspace(-8, 12, 400)
    grid = torch.cartesian_prod(axis, axis)
    density = estimator.log_prob(grid.unsqueeze(1), x)[:, 0].exp()
    cell = (axis[1] - axis[0]) ** 2
    # 256 draws whose weights vary as much as a share of a quarter allows: three standard errors.
    assert math.isclose((density.sum() * cell).item(), 1.0, abs_tol=3 * (3 / 256) ** 0.5)
    mean = (density[:, None] * grid).sum(0) / density.sum()
    drawn = estimator.sample(torch.Size((20_000,)), x)[:, 0]
    assert torch.allclose(drawn.mean(0), mean, atol=5 * drawn.std(0).max().item() / 20_000**0.5)


def test_without_weight_it_is_the_flow():
    estimator, theta, x = gaussians(0.0), torch.randn(5, 3, 2), torch.randn(3, 2)
    assert torch.equal(estimator.log_prob(theta, x), estimator.flow.log_prob(theta, x))
    torch.manual_seed(1)
    drawn = estimator.sample(torch.Size((4,)), x)
    torch.manual_seed(1)
    assert torch.equal(drawn, estimator.flow.sample(torch.Size((4,)), x))


def test_shapes_are_those_of_sbi():
    estimator, x = gaussians(0.25), torch.randn(3, 2)
    theta = torch.randn(5, 3, 2)
    expected = estimator.log_prob(theta, x)
    assert expected.shape == (5, 3)
    # Parameters without a dimension of samples, and one x for all, or all parameters for each x.
    assert torch.allclose(estimator.log_prob(theta[0], x), expected[:1])
    assert estimator.log_prob(theta, x[:1]).shape == (5, 3)
    assert estimator.log_prob(theta[:, :1], x).shape == (5, 3)
    assert torch.allclose(estimator.log_prob(theta, x.expand(5, 3, 2)), expected)
    assert torch.equal(estimator.loss(theta[0], x), -estimator.log_prob(theta[:1], x)[0])
    assert estimator.sample(torch.Size((2, 4)), x).shape == (2, 4, 3, 2)
    assert estimator.sample(torch.Size((0,)), x).shape == (0, 3, 2)
    assert estimator.sample(torch.Size(), x).shape == (3, 2)


def test_one_x_has_one_normaliser_however_often_it_is_asked_for():
    estimator, x = gaussians(0.25), torch.randn(1, 2)
    theta = torch.randn(6, 2)
    in_rows = estimator.log_prob(theta.unsqueeze(0), x.expand(6, 2))[0]
    alone = estimator.log_prob(theta.unsqueeze(1), x)[:, 0]
    assert torch.allclose(in_rows, alone)


def test_the_density_at_an_x_does_not_depend_on_the_other_x():
    theta = PRIOR.sample((200,))
    flow = flow_nn(PRIOR)(theta, theta + torch.randn_like(theta))
    base = Base(PRIOR, theta)
    network = partial(GaussianEnergy, base, 1.0, 0.5)
    estimator = JeffreysEstimator(
        flow, theta, theta, base=base, build_proxy=lambda theta, context: nn.Identity()
    )
    estimator.proxy.network = network()
    estimator.weight = 0.5
    many, x = PRIOR.sample((700,)), torch.randn(700, 2)
    with torch.no_grad():
        together = estimator.eval().log_prob(many.unsqueeze(0), x)[0]
        alone = [estimator.log_prob(many[i].view(1, 1, 2), x[i : i + 1]).item() for i in (0, 699)]
    # Float32, in batches of another shape; estimates from other draws would differ by 0.03.
    assert torch.allclose(together[[0, 699]], torch.tensor(alone), atol=1e-3)


def test_the_density_draws_from_no_generator_of_the_users():
    estimator, theta, x = gaussians(0.25), torch.randn(1, 3, 2), torch.randn(3, 2)
    before = torch.get_rng_state()
    first = estimator.log_prob(theta, x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(estimator.log_prob(theta, x), first)


@pytest.mark.parametrize("num_x", [1, 3])
def test_a_grid_of_parameters_is_evaluated_in_parts(num_x, monkeypatch):
    estimator, theta, x = gaussians(0.25), torch.randn(100, num_x, 2), torch.randn(num_x, 2)
    expected = estimator.log_prob(theta, x)
    monkeypatch.setattr(pool, "_AT_ONCE", 30)
    seen = []
    real = pool.log_ratio
    monkeypatch.setattr(
        pool, "log_ratio", lambda e, c, t, *f: seen.append(t.shape[:2].numel()) or real(e, c, t, *f)
    )
    with torch.no_grad():
        assert torch.allclose(estimator.log_prob(theta, x), expected)
    assert max(seen) <= 30


def test_the_weight_is_part_of_the_state():
    theta, x = torch.randn(1, 3, 2), torch.randn(3, 2)
    estimator, other = gaussians(0.5), gaussians(0.0)
    other.load_state_dict(estimator.state_dict())
    assert other.weight == 0.5
    assert torch.equal(other.log_prob(theta, x), estimator.log_prob(theta, x))


def test_threads_get_what_one_gets_and_leave_the_generator_alone():
    for estimator in (gaussians(0.5), default(0.5)):
        xs, theta = torch.randn(12, 1, 2), torch.randn(1, 6, 2)

        def density(x, estimator=estimator, theta=theta):
            return estimator.log_prob(theta, x.expand(6, 2)).detach()

        expected = [density(x) for x in xs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(density, xs))
        assert all(map(torch.equal, found, expected))
        states = set()
        for seed in range(3):
            torch.manual_seed(seed)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(density, xs))
            states.add(torch.rand(1).item())
        assert len(states) == 3


def test_what_is_remembered_of_one_x_is_forgotten_when_weights_change():
    estimator, theta, x = gaussians(0.25), torch.zeros(1, 1, 2), torch.zeros(1, 2)
    first = estimator.log_prob(theta, x)
    with torch.no_grad():
        estimator.flow.scale.mul_(1.2)
    second = estimator.log_prob(theta, x)
    fresh = gaussians(0.25)
    fresh.load_state_dict(estimator.state_dict())
    assert not torch.allclose(first, second)
    assert torch.equal(second, fresh.log_prob(theta, x))
    estimator.weight = 0.5
    assert not torch.allclose(estimator.log_prob(theta, x), second)


def test_gradients_in_theta_are_those_of_the_density():
    estimator, x = gaussians(0.5), torch.zeros(1, 2)
    theta = torch.tensor([[[0.3, -0.2]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(estimator.log_prob(theta, x).sum(), theta)
    mean, scale = pooled(0.5)
    assert torch.allclose(gradient, (mean - theta) / scale**2, atol=1e-4)


def test_a_gradient_in_x_is_refused_where_it_would_be_wrong():
    theta, x = PRIOR.sample((3,)), torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"x requires a gradient.*estimator\.flow"):
        gaussians(0.5).log_prob(theta, x)
    with torch.no_grad():
        gaussians(0.5).log_prob(theta, x)
    (found,) = torch.autograd.grad(gaussians(0.0).log_prob(theta, x).sum(), x)
    torch.testing.assert_close(found, (theta - x) / FLOW**2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_proxy_that_says_no_number_leaves_the_flow(value):
    estimator, theta, x = gaussians(0.5), torch.randn(4, 3, 2), torch.randn(3, 2)
    estimator.proxy.network = Constant(value)
    of_flow = estimator.flow.log_prob(theta, x)
    assert torch.allclose(estimator.log_prob(theta, x), of_flow, atol=1e-3)
    assert estimator.sample(torch.Size((10,)), x).isfinite().all()


def test_losses_are_those_of_the_bounded_pool():
    estimator, x = gaussians(0.5, shift=5.0), torch.randn(20, 2)
    theta = x + 5.0  # where the proxy lies: far above the bound
    found = pool.losses(estimator, theta[None], x, (0.0, 0.5))
    torch.testing.assert_close(found[0, 0], estimator.flow.loss(theta, x))
    expected = -estimator.log_prob(theta[None], x)
    # Normalisers of 128 and of 256 draws.
    torch.testing.assert_close(found[1], expected, atol=0.5, rtol=0)


def test_losses_of_parameters_that_all_x_share():
    estimator, x = gaussians(0.5), torch.randn(20, 2)
    theta = torch.randn(7, 1, 2)
    shared = pool.losses(estimator, theta, x, (0.0, 0.5))
    torch.testing.assert_close(
        shared, pool.losses(estimator, theta.expand(7, 20, 2), x, (0.0, 0.5))
    )
    assert shared.shape == (2, 7, 20)


def test_losses_of_more_than_fits_at_once(monkeypatch):
    estimator, x, theta = gaussians(0.5), torch.randn(20, 2), torch.randn(7, 1, 2)
    together = pool.losses(estimator, theta, x, (0.5,))
    monkeypatch.setattr(embedded_flow, "_PAIRS", 3 * 128)
    # Draws of other flows than the default one are others in each part.
    torch.testing.assert_close(pool.losses(estimator, theta, x, (0.5,)), together, atol=0.5, rtol=0)


class _FarWhereXIsPositive(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, theta, context):
        normal = Normal(context + 5.0 * (context[..., :1] > 0), 0.8)
        return normal.log_prob(theta).sum(-1) - self.base.log_prob_soft(theta)


@FAR
def test_x_of_which_few_draws_are_kept_get_their_own():
    estimator = gaussians(0.5)
    estimator.proxy.network = _FarWhereXIsPositive(estimator.proxy.base)
    x = torch.tensor([[-50.0, 0.0], [-60.0, 0.0], [70.0, 0.0]])
    drawn = estimator.sample(torch.Size((2000,)), x)
    assert ((drawn - x).abs() < 10).all()


@pytest.mark.parametrize("num_x", [1, 3, 80])
def test_draws_are_the_same_in_whatever_parts_the_proxy_sees_them(num_x, monkeypatch):
    estimator, x = gaussians(0.5), torch.randn(num_x, 2)
    torch.manual_seed(1)
    together = estimator.sample(torch.Size((50,)), x)
    monkeypatch.setattr(pool, "_AT_ONCE", 64)
    sizes = []
    forward = estimator.proxy.network.forward
    monkeypatch.setattr(
        estimator.proxy.network,
        "forward",
        lambda theta, context: sizes.append(theta.shape[:-1]) or forward(theta, context),
    )
    torch.manual_seed(1)
    # Parts of products may be rounded otherwise.
    torch.testing.assert_close(estimator.sample(torch.Size((50,)), x), together, atol=1e-4, rtol=0)
    assert max(map(torch.Size.numel, sizes)) <= max(64, num_x)


@FAR
def test_more_x_than_fit_at_once_are_all_drawn_for(monkeypatch):
    monkeypatch.setattr(embedded_flow, "_PAIRS", 512)
    x = 100.0 * torch.arange(1.0, 601.0).unsqueeze(1).expand(600, 2)
    drawn = gaussians(0.5).sample(torch.Size((2,)), x)
    assert ((drawn - x).abs() < 10).all()


def test_what_is_remembered_is_forgotten_when_other_weights_or_buffers_take_their_place():
    theta, x = torch.zeros(1, 1, 2), torch.zeros(1, 2)
    for change in (lambda e: setattr(e.flow.scale, "data", torch.tensor(1.5)),):
        estimator, fresh = gaussians(0.25), gaussians(0.25)
        estimator.log_prob(theta, x)
        change(estimator)
        change(fresh)
        assert torch.equal(estimator.log_prob(theta, x), fresh.log_prob(theta, x))
    estimator = default(0.25)
    before = estimator.log_prob(theta, x)
    # A constant in the proxy, which is a buffer, changes no pool.
    estimator.proxy.network.log_ratio += 5.0
    torch.testing.assert_close(estimator.log_prob(theta, x), before, rtol=0, atol=1e-3)


def test_weights_of_inference_mode_have_no_versions():
    with torch.inference_mode():
        estimator, theta, x = gaussians(0.25), torch.zeros(1, 1, 2), torch.zeros(1, 2)
        assert estimator.log_prob(theta, x).isfinite().all()


def test_what_is_no_number_counts_as_the_worst():
    estimator = gaussians(0.5)
    estimator.proxy.network = Constant(float("nan"))
    zero = torch.zeros(1, 1)
    found = pool.log_ratio(estimator, torch.zeros(1, 2), torch.zeros(1, 1, 2), zero)
    assert found.item() == -pool._LARGEST


def test_the_density_is_that_of_one_seed_whatever_the_users_is():
    theta, x, found = torch.randn(1, 3, 2), torch.randn(3, 2), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(gaussians(0.25).log_prob(theta, x))
    assert torch.equal(*found)


def test_no_rows():
    estimator = gaussians(0.5)
    x = torch.randn(2, 2)
    assert estimator.sample(torch.Size((3,)), x[:0]).shape == (3, 0, 2)
    assert estimator.log_prob(x[:0].unsqueeze(0), x[:0]).shape == (1, 0)
    assert estimator.log_prob(torch.zeros(0, 1, 2), x[:1]).shape == (0, 1)


@pytest.mark.parametrize(("name", "d"), [("mdn", 40), ("zuko_nsf", 3)])
def test_memory_is_bounded_whatever_the_flow(name, d):
    """sbi's mixtures make a matrix for each component of each pair: 40 parameters, 2,621 pairs."""
    theta, x = torch.randn(60, d), torch.randn(60, d)
    flow = posterior_nn(name)(theta, x)
    base = Base(Independent(Normal(torch.zeros(d), 2.0), 1), theta)
    estimator = JeffreysEstimator(flow, theta, x, base=base, build_proxy=proxy_nn("mlp"))
    estimator.weight, seen = 0.5, []
    evaluate = estimator.log_prob_embedded
    estimator.log_prob_embedded = lambda theta, context: (
        seen.append(theta[..., 0].numel()) or evaluate(theta, context)
    )
    estimator.log_prob(theta.unsqueeze(0), x)
    estimator.sample(torch.Size((200,)), x)
    pool.losses(estimator, theta.unsqueeze(0), x, (0.0, 0.5))
    assert max(seen) <= (2**22 // d**2 if name == "mdn" else 2**16)
    assert max(seen) > 2**10
