"""The default flow: a density on the prior's support, and the splines put into sbi's flows."""

import contextlib
import math

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, LogNormal
from zuko.transforms import MonotonicRQSTransform

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.layers.autoregressive import accelerate
from sbi_jeffreys.layers.splines import RationalQuadraticSpline
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.utils.quiet import QuietTracker
from sbi_jeffreys.walls import SoftWalls

SMALL = {"hidden_features": 16, "num_transforms": 2}


def box(dim):
    """A prior whose sides differ."""
    return BoxUniform(torch.tensor([-1.0, 0.0])[:dim], torch.tensor([1.0, 5.0])[:dim])


def build(prior, dim, num=400, **kwargs):
    """A flow with weights that are not those of the initialisation, in float64."""
    theta = prior.sample((num,)) if prior is not None else 2 * torch.randn(num, dim) + 1
    x = theta[:, :1] + 0.1 * torch.randn(num, 2)
    flow = flow_nn(prior, **(SMALL | kwargs))(theta, x)
    with torch.no_grad():
        for parameter in flow.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.double(), theta.double(), x.double()


def even_grid(num):
    """Points up to seven standard deviations of theta from its mean, and their weights."""
    points = torch.linspace(-13, 15, num, dtype=torch.float64)
    return points, torch.full_like(points, 28 / (num - 1))


def crowded_grid(low, high, num):
    """Points of (low, high), crowded at its ends where the walls are, and their weights."""
    v = torch.linspace(-20, 20, num, dtype=torch.float64)
    # sigmoid(v) and sigmoid(-v), each exact where it is small
    points = torch.where(
        v < 0, low + (high - low) * v.sigmoid(), high - (high - low) * (-v).sigmoid()
    )
    weights = (high - low) * v.sigmoid() * (-v).sigmoid() * (v[1] - v[0])
    return points, weights


@pytest.mark.parametrize("bounded", [True, False])
def test_integrates_to_one_in_one_dimension(bounded):
    flow, _, x = build(box(1) if bounded else None, 1)
    points, weights = crowded_grid(-1.0, 1.0, 40001) if bounded else even_grid(40001)
    density = flow.log_prob(points[:, None, None], x[:3]).exp()
    # The walls hold values nearer than 1e-6 thicknesses at a fixed depth; next to no mass there.
    torch.testing.assert_close(
        weights @ density, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("bounded", [True, False])
def test_integrates_to_one_in_two_dimensions(bounded):
    flow, _, x = build(box(2) if bounded else None, 2)
    # x tells the first parameter to a few hundredths: its grid is the finer one.
    a, first = crowded_grid(-1.0, 1.0, 3200) if bounded else even_grid(3200)
    b, second = crowded_grid(0.0, 5.0, 200) if bounded else even_grid(200)
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for some, weights in zip(a.split(400), first.split(400), strict=True):
            points = torch.cartesian_prod(some, b)
            density = flow.log_prob(points[:, None], x[:1]).exp()[:, 0].reshape(400, 200)
            total += weights @ density @ second
    # The trapezoidal rule on a spline with kinks in its slope, about ten points to a bin.
    assert abs(total - 1) < 5e-3


@pytest.mark.parametrize("prior", [box(1), box(2), None], ids=["1", "2", "unbounded"])
def test_samples_come_from_log_prob(prior):
    dim = 2 if prior is None else prior.event_shape[0]
    flow, _, x = build(prior, dim)
    theta = flow.sample(torch.Size((4000,)), x[:3])
    assert theta.shape == (4000, 3, dim)
    # For any density g: the mean of g / p under p is one. Here g sits in the bulk of p.
    center, scale = theta.mean(dim=0), theta.std(dim=0)
    inside = 1.5 * scale
    g = torch.where(((theta - center).abs() < inside).all(dim=-1), 1.0, 0.0)
    if prior is not None:
        low = torch.maximum(center - inside, prior.support.base_constraint.lower_bound)
        high = torch.minimum(center + inside, prior.support.base_constraint.upper_bound)
    else:
        low, high = center - inside, center + inside
    g = g / (high - low).prod(dim=-1)
    ratio = g * (-flow.log_prob(theta, x[:3])).exp()
    error = ratio.std(dim=0) / math.sqrt(len(ratio))
    assert (error < 0.1).all()
    assert ((ratio.mean(dim=0) - 1).abs() < 5 * error).all()


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_never_leaks_out_of_the_prior(dim, noise):
    prior = box(dim)
    theta = prior.sample((500,))
    x = theta + 0.1 * torch.randn(500, dim)
    flow = flow_nn(prior, **SMALL)(theta, x)
    with torch.no_grad():
        for parameter in flow.net.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    # Also for data far from all that were simulated.
    samples = flow.sample(torch.Size((2000,)), torch.cat((x[:3], 1e3 * x[:3])))
    assert samples.dtype == torch.float32
    assert prior.support.check(samples).all()
    assert flow.log_prob(samples, torch.cat((x[:3], 1e3 * x[:3]))).isfinite().all()
    outside = torch.full((1, 3, dim), 5.5)
    assert (flow.log_prob(outside, x[:3]) == -math.inf).all()


def test_half_bounded_prior():
    prior = Independent(LogNormal(torch.zeros(2), 1.0), 1)
    flow, _, x = build(prior, 2)
    samples = flow.sample(torch.Size((2000,)), x[:4])
    assert (samples > 0).all()
    assert (flow.log_prob(-samples[:5], x[:4]) == -math.inf).all()


def test_simulations_outside_of_the_prior_keep_a_density():
    prior = box(1)
    theta = torch.linspace(-1.5, 1.2, 300)[:, None]
    flow = flow_nn(prior, **SMALL)(theta, theta.clone())
    assert flow.log_prob(theta[None], theta).isfinite().all()


def has_walls(estimator):
    return any(getattr(m, "f", None) is SoftWalls for m in estimator.modules())


def test_walls_come_back_with_simulations_inside():
    """Who leaves the others out trains from scratch, with the walls of the prior."""
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    theta = 2.4 * torch.rand(60, 2) - 1.2
    x = theta + 0.2 * torch.randn(60, 2)
    with pytest.warns(UserWarning, match="outside of the prior"):
        trainer.append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=1)
    assert not has_walls(estimator)
    inside = (theta.abs() < 1).all(dim=1)
    proposal = trainer.build_posterior().set_default_x(x[0])
    trainer.append_simulations(theta[inside], x[inside], proposal)
    estimator = trainer.train(
        max_num_epochs=1,
        training_batch_size=10,
        discard_prior_samples=True,
        retrain_from_scratch=True,
    )
    assert has_walls(estimator)


@pytest.mark.parametrize("outside", [False, True])
def test_a_builder_of_other_sizes_knows_of_walls_what_the_name_does(outside, tmp_path):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    build = flow_nn(prior, **SMALL)
    trainer = JeffreysNPE(prior, build, seed=0, show_progress_bars=False, tracker=QuietTracker())
    theta = (1.2 if outside else 1.0) * prior.sample((60,))
    warned = pytest.warns(UserWarning, match="outside of the prior")
    with warned if outside else contextlib.nullcontext():
        trainer.append_simulations(theta, theta + 0.2 * torch.randn(60, 2))
    estimator = trainer.train(max_num_epochs=1)
    assert has_walls(estimator) != outside
    path = tmp_path / "posterior.safetensors"
    save(trainer.build_posterior(), path)
    loaded = load(path, build=build).posterior_estimator
    assert torch.equal(loaded.loss(theta, theta), estimator.loss(theta, theta))


@pytest.mark.parametrize("prior", [[1.0, 2.0], 3, torch.zeros(2)])
def test_a_prior_that_is_none_is_refused(prior):
    with pytest.raises(TypeError, match="prior must be a torch distribution"):
        flow_nn(prior)


def test_an_embedding_network_is_a_module():
    with pytest.raises(TypeError, match="embedding_net must be a module of x, or None, got 'cnn'"):
        flow_nn(embedding_net="cnn")


@pytest.mark.parametrize(
    "size",
    [
        {"hidden_features": 0},
        {"hidden_layers": -1},
        {"num_transforms": -1},
        {"num_bins": 0},
        {"num_bins": 2.5},
        {"components": -1},
    ],
)
def test_sizes_that_will_not_do_are_refused(size):
    ((name, value),) = size.items()
    with pytest.raises(ValueError, match=f"{name} must be an integer .* got {value}"):
        flow_nn(**size)


def test_starts_near_the_scale_of_theta():
    theta = torch.randn(2000, 2) * torch.tensor([1e-3, 1e3]) + torch.tensor([5.0, -2e4])
    flow = flow_nn(None)(theta, torch.randn(2000, 3))
    samples = flow.sample(torch.Size((500,)), torch.randn(4, 3)).reshape(-1, 2)
    # An untrained flow is a smooth distortion of the Gaussian with theta's moments.
    assert ((samples.mean(dim=0) - theta.mean(dim=0)).abs() < theta.std(dim=0)).all()
    ratio = samples.std(dim=0) / theta.std(dim=0)
    assert (ratio > 0.3).all()
    assert (ratio < 3).all()


def test_image_with_embedding_net():
    embedding = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    theta, x = torch.randn(50, 2), torch.randn(50, 1, 8, 8)
    flow = flow_nn(None, embedding_net=embedding, **SMALL)(theta, x)
    assert flow.condition_shape == (1, 8, 8)
    assert flow.log_prob(theta[None], x).shape == (1, 50)
    assert flow.sample(torch.Size((3,)), x[:5]).shape == (3, 5, 2)
    names = [name for name, _ in flow.named_parameters() if "embedding" in name]
    assert len(names) == 4
    flow.loss(theta, x).mean().backward()
    assert embedding[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("learnt", [True, False])
def test_a_network_for_x_gets_a_batch_at_a_time(learnt):
    class Watching(nn.Linear):
        most = 0

        def forward(self, x):
            if not torch.is_grad_enabled():
                self.most = max(self.most, len(x))
            return super().forward(x.flatten(1))

    net = Watching(12, 3).requires_grad_(learnt)
    theta = torch.rand(1000, 2)
    x = theta.repeat(1, 6).reshape(-1, 3, 4) + 0.1 * torch.randn(1000, 3, 4)
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    trainer = JeffreysNPE(
        prior,
        flow_nn(prior, embedding_net=net, **SMALL),
        show_progress_bars=False,
        tracker=QuietTracker(),
    )
    trainer.append_simulations(theta, x)
    held_out = (theta[:500], x[:500])
    estimator = trainer.train(max_num_epochs=1, validation_data=held_out)
    assert 0 < net.most <= 200
    # The same as at once, to rounding.
    with torch.no_grad():
        together = estimator.flow.embedding_net(x)
        torch.testing.assert_close(estimator.embed(x), together)


def test_image_without_embedding_net_is_flattened():
    theta, x = torch.randn(50, 1), torch.randn(50, 3, 4)
    flow = flow_nn(None, **SMALL)(theta, x)
    assert flow.embedding_net(x).shape == (50, 12)
    assert flow.sample(torch.Size((3,)), x[:5]).shape == (3, 5, 1)


def univariates(module):
    found = [getattr(m, "univariate", None) for m in module.modules()]
    return [getattr(u, "func", u) for u in found if u is not None]


def test_the_default_flow_is_accelerated():
    flow, _, _ = build(box(2), 2)
    assert univariates(flow) == [RationalQuadraticSpline] * 2


@pytest.mark.parametrize("dim", [1, 2])
def test_accelerate_leaves_the_function_of_sbis_spline_flow(dim):
    theta, x = torch.randn(200, dim), torch.randn(200, 3)
    flow = posterior_nn("zuko_nsf", hidden_features=16, num_transforms=3)(theta, x).double()
    theta, x = 3 * torch.randn(50, 20, dim, dtype=torch.float64), x[:20].double()
    assert univariates(flow) == [MonotonicRQSTransform] * 3
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    before = flow.log_prob(theta, x)
    torch.manual_seed(1)
    samples = flow.sample(torch.Size((30,)), x)
    gradient = torch.autograd.grad(before.sum(), list(flow.parameters()))

    accelerate(flow)

    assert univariates(flow) == [RationalQuadraticSpline] * 3
    assert list(flow.state_dict()) == list(state)
    assert all((flow.state_dict()[name] == value).all() for name, value in state.items())
    after = flow.log_prob(theta, x)
    # float64, three layers of splines.
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for new, old in zip(
        torch.autograd.grad(after.sum(), list(flow.parameters())), gradient, strict=True
    ):
        torch.testing.assert_close(new, old, rtol=1e-8, atol=1e-8)
    torch.manual_seed(1)
    torch.testing.assert_close(flow.sample(torch.Size((30,)), x), samples, rtol=1e-7, atol=1e-7)


def test_accelerating_twice_is_accelerating_once():
    flow, theta, x = build(box(2), 2)
    before = flow.log_prob(theta[None], x)
    accelerate(flow)
    assert (flow.log_prob(theta[None], x) == before).all()


@pytest.mark.parametrize("model", ["maf", "mdn", "nsf", "zuko_maf"])
def test_accelerate_leaves_other_estimators_alone(model):
    theta, x = torch.randn(100, 2), torch.randn(100, 3)
    flow = posterior_nn(model, hidden_features=16)(theta, x)
    description, before = repr(flow), flow.log_prob(theta[None], x)
    functions = univariates(flow)
    accelerate(flow)
    assert repr(flow) == description
    assert univariates(flow) == functions
    assert (flow.log_prob(theta[None], x) == before).all()


class Fixed(nn.Module):
    """An embedding that nobody trains, with outputs of any scale, and a mode that matters."""

    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = scale, shift
        self.norm, self.drop = nn.BatchNorm1d(2, affine=False), nn.Dropout(0.5)

    def forward(self, x):
        return self.scale * self.drop(self.norm(x)) + self.shift


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 0.0), (1e3, 0.0), (1e-2, 100.0)])
def test_the_scale_of_a_given_embedding_does_not_matter(scale, shift):
    theta = torch.randn(500, 2)
    x = theta + 0.1 * torch.randn(500, 2)
    flow = flow_nn(embedding_net=Fixed(scale, shift), **SMALL)(theta, x).eval()
    # The start is the linear posterior: -2.7 nats is that of theta given x, 2.8 that of theta.
    assert flow.loss(theta, x).mean() < -1.4
    context = flow.embedding_net(x)
    torch.testing.assert_close(context.mean(dim=0), torch.zeros(2), rtol=0, atol=2e-2)
    torch.testing.assert_close(context.std(dim=0), torch.ones(2), rtol=1e-2, atol=0)


def test_building_asks_an_embedding_in_evaluation_mode_and_leaves_it_as_it_was():
    theta, x = torch.randn(100, 2), torch.randn(100, 2)
    net = Fixed(1.0, 0.0)
    net.drop.eval()
    flow = flow_nn(embedding_net=net, **SMALL)(theta, x)
    JeffreysEstimator(flow, theta, x, base=Base(None, theta), build_proxy=proxy_nn())
    assert net.norm.num_batches_tracked == 0
    assert net.training
    assert net.norm.training
    assert not net.drop.training


@pytest.mark.parametrize("dim", range(2, 9))
def test_features_are_apart_in_some_layer(dim):
    # In one half of a coupling layer features do not see each other.
    flow, _, _ = build(None, dim, num_transforms=3)
    halves = torch.stack([t.order for t in flow.net.transform.transforms if hasattr(t, "order")])
    assert len(halves) == 3
    assert (halves.sum(dim=1) == dim // 2).all()
    together = (halves.unsqueeze(2) == halves.unsqueeze(1)).all(dim=0).triu(1).sum()
    # Halves of equal size leave one pair of six features together.
    assert together == (1 if dim == 6 else 0)


def test_gradients_after_samples_in_inference_mode():
    theta = torch.rand(50, 4)
    flow = flow_nn(BoxUniform(torch.zeros(4), torch.ones(4)))(theta, theta)
    with torch.inference_mode():
        flow.sample(torch.Size((3,)), theta[:2])
    flow.net(flow.embedding_net(theta[:2])).rsample((3,)).sum().backward()
    assert any(p.grad is not None for p in flow.parameters())
