"""The proxy: it starts as its base, and knows where the base ends."""

import copy
import math

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior, process_prior
from sbi.utils.sbiutils import ImproperEmpirical
from torch import nn
from torch.distributions import (
    Dirichlet,
    Exponential,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.base import Base
from sbi_jeffreys.proxy import EnergyProxy, PairMLP, check_network, proxy_nn
from sbi_jeffreys.utils.quiet import QuietTracker

PRIORS = [
    pytest.param(BoxUniform(-torch.ones(2), 3 * torch.ones(2)), id="box"),
    pytest.param(MultivariateNormal(torch.zeros(2), torch.eye(2)), id="Gaussian"),
    pytest.param(Independent(LogNormal(torch.zeros(2), 1.0), 1), id="lognormal"),
    pytest.param(Independent(Uniform(torch.zeros(2), torch.ones(2)), 1), id="validating"),
    pytest.param(
        MultipleIndependent([Exponential(torch.ones(1)), Uniform(torch.zeros(1), torch.ones(1))]),
        id="multiple",
    ),
    pytest.param(Dirichlet(torch.ones(3)), id="simplex"),
]
BOUNDED = [p for p in PRIORS if p.id != "Gaussian"]


def make(theta, context, base, **kwargs):
    return EnergyProxy(proxy_nn("mlp", **kwargs)(theta, context), base, nn.Identity())


def perturb(module, scale=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("prior", PRIORS)
def test_base_is_the_prior_inside(prior):
    theta = prior.sample((50,))
    base = Base(prior, theta)
    expected = process_prior(prior)[0].log_prob(theta)
    torch.testing.assert_close(base.log_prob(theta), expected)
    torch.testing.assert_close(base.log_prob_soft(theta), expected)
    assert base.log_prob(theta.reshape(5, 10, -1)).shape == (5, 10)
    assert base.sample(7).shape == (7, theta.shape[-1])


@pytest.mark.parametrize("prior", BOUNDED)
def test_base_outside_of_the_prior(prior):
    theta = prior.sample((50,))
    base = Base(prior, theta)
    outside = -1.5 - theta
    mixed = torch.stack((theta, outside))
    assert (base.log_prob(outside) == -math.inf).all()
    soft = base.log_prob_soft(mixed)
    assert soft.isfinite().all()
    assert (soft[1] <= base.floor).all()
    # Well below what is typical inside.
    assert (soft[1] < soft[0].median() - 1).all()
    assert base.log_prob(mixed)[0].isfinite().all()


@pytest.mark.parametrize("prior", PRIORS[:3])
def test_base_moves_with_its_distribution(prior):
    # "meta" stands for a GPU, which not every machine has.
    base = Base(copy.deepcopy(prior), prior.sample((50,)))
    assert base.to("cpu").sample(3).device.type == "cpu"
    assert base.to("meta").sample(3).device.type == "meta"
    assert {t.device.type for t in (base.anchor, base.floor, base.units)} == {"meta"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_base_of_numbers_that_are_none(bad):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    base = Base(prior, prior.sample((20,)))
    theta = torch.tensor([[0.0, bad], [0.0, 0.0]])
    assert base.log_prob(theta)[0] == -math.inf
    assert base.log_prob(theta)[1].isfinite()


def test_base_when_all_simulations_lie_outside():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    base = Base(prior, 5 + torch.rand(20, 2))
    torch.testing.assert_close(base.floor, torch.tensor(-2 * math.log(2) - 10))


@pytest.mark.parametrize("prior", [None, "improper"])
def test_no_prior_gives_a_wide_gaussian(prior):
    theta = torch.randn(500, 2) * torch.tensor([0.1, 30.0]) + torch.tensor([5.0, -100.0])
    if prior == "improper":
        prior = ImproperEmpirical(theta)
    base = Base(prior, theta)
    expected = Independent(Normal(theta.mean(dim=0), 2 * theta.std(dim=0)), 1)
    torch.testing.assert_close(base.log_prob(theta), expected.log_prob(theta))
    # No end to its support.
    far = 1e3 * theta
    torch.testing.assert_close(base.log_prob(far), expected.log_prob(far))
    torch.testing.assert_close(base.log_prob_soft(far), expected.log_prob(far))
    draws = base.sample(20_000)
    # Five standard errors of a mean and of a standard deviation from 20 000 draws.
    scale = 2 * theta.std(dim=0)
    assert ((draws.mean(dim=0) - theta.mean(dim=0)).abs() < 5 * scale / 141).all()
    assert ((draws.std(dim=0) / scale - 1).abs() < 5 / 200).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_proxy_starts_as_its_base(prior):
    theta = prior.sample((30,))
    x = torch.randn(30, 4)
    base = Base(prior, theta)
    proxy = make(theta, x, base)
    assert (proxy.log_ratio(theta, x) == 0).all()
    torch.testing.assert_close(
        proxy.log_prob_unnormalized(theta, x)[0], base.log_prob(theta), rtol=0, atol=0
    )
    # And leaves it with the first step: the gradient reaches the last layer.
    proxy.log_ratio(theta, x).sum().backward()
    assert proxy.network.last.bias.grad.abs().sum() > 0


def test_log_prob_unnormalized_is_base_plus_ratio():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta, x = prior.sample((30,)), torch.randn(30, 4)
    base = Base(prior, theta)
    proxy = make(theta, x, base)
    perturb(proxy)
    points = torch.stack((theta, theta + 2.5))
    expected = proxy.log_ratio(points, x) + base.log_prob(points)
    found = proxy.log_prob_unnormalized(points, x)
    torch.testing.assert_close(found, expected)
    assert (found[1] == -math.inf).any()
    # Parameters of any type.
    torch.testing.assert_close(proxy.log_prob_unnormalized(points.double(), x), found)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_shapes_of_theta_mean_the_same(dtype):
    theta, x = torch.randn(5, 2, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    proxy = make(theta.float(), x.float(), Base(None, theta.float())).to(dtype)
    perturb(proxy)
    single = proxy.log_ratio(theta, x)
    assert single.shape == (1, 5)
    shared = theta[:, None]
    table = proxy.log_ratio(shared, x)
    assert table.shape == (5, 5)
    # Row s, column b: parameter s with condition b, one pair at a time.
    for s in range(5):
        for b in range(5):
            alone = proxy.log_ratio(theta[s : s + 1], x[b : b + 1])
            torch.testing.assert_close(table[s, b], alone[0, 0])
    torch.testing.assert_close(table.diagonal(), single[0])
    full = proxy.log_ratio(theta[:, None].expand(5, 5, 2), x)
    torch.testing.assert_close(full, table)
    torch.testing.assert_close(proxy.network(shared, x.expand(2, 5, 3)[:1]), table)


@pytest.mark.parametrize("shape", [(4, 2), (2,), (3, 4, 2), (1, 1, 5, 2)])
def test_shapes_of_theta_that_fit_no_x(shape):
    theta, x = torch.randn(5, 2), torch.randn(5, 3)
    proxy = make(theta, x, Base(None, theta))
    with pytest.raises(ValueError, match="for the 5 x, got"):
        proxy.log_prob_unnormalized(torch.zeros(shape), x)


def test_scale_of_theta_does_not_matter():
    theta, x = torch.randn(200, 2, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    scale = torch.tensor([1e-4, 1e5], dtype=torch.float64)
    torch.manual_seed(1)
    network = PairMLP(theta, x).double()
    torch.manual_seed(1)
    scaled = PairMLP(theta * scale + 7, x).double()
    for module in (network, scaled):
        torch.manual_seed(2)
        perturb(module)
    # The mean of 7 + 1e-4 θ loses five digits of float64.
    torch.testing.assert_close(
        network(theta[None], x), scaled((theta * scale + 7)[None], x), rtol=1e-8, atol=1e-8
    )


def test_constant_theta_gives_finite_values():
    theta = torch.ones(20, 2)
    theta[:, 0] = torch.randn(20)
    network = PairMLP(theta, torch.randn(20, 3))
    perturb(network)
    assert network(theta[None], torch.randn(20, 3)).isfinite().all()


def test_embedding_is_not_part_of_the_proxy():
    theta, x = torch.randn(20, 2), torch.randn(20, 4)
    embedding = nn.Linear(4, 3)
    proxy = EnergyProxy(PairMLP(theta, embedding(x)), Base(None, theta), embedding)
    perturb(proxy)
    assert not any("embed" in name for name in proxy.state_dict())
    torch.testing.assert_close(proxy.log_ratio(theta, x), proxy.network(theta[None], embedding(x)))


def test_copies_are_independent():
    theta, x = torch.randn(20, 2), torch.randn(20, 3)
    proxy = make(theta, x, Base(None, theta))
    perturb(proxy)
    duplicate = copy.deepcopy(proxy)
    before = duplicate.log_ratio(theta, x)
    assert (before == proxy.log_ratio(theta, x)).all()
    perturb(proxy)
    assert (duplicate.log_ratio(theta, x) == before).all()


@pytest.mark.parametrize(("kwargs", "width", "layers"), [
    ({}, None, None),
    ({"hidden_features": 24, "hidden_layers": 3}, 24, 3),
])  # fmt: skip
def test_proxy_nn_passes_its_arguments_on(kwargs, width, layers):
    network = proxy_nn("mlp", **kwargs)(torch.randn(20, 2), torch.randn(20, 5))
    assert isinstance(network, PairMLP)
    assert network.context.in_features == 5
    if width is not None:
        assert network.theta.out_features == width
        assert sum(isinstance(m, nn.Linear) for m in network.layers) == layers


@pytest.mark.parametrize("name", ["resnet", "", "MLP"])
def test_unknown_proxy(name):
    with pytest.raises(ValueError, match=f"{name!r}.*'mlp'"):
        proxy_nn(name)


@pytest.mark.parametrize("model", ["mlp", "likelihood"])
def test_an_argument_that_no_network_takes(model):
    with pytest.raises(TypeError, match=r"takes no hiden: only .*'hidden_features'"):
        proxy_nn(model, hiden=3)


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        ("mlp", {"hidden_features": 0}),
        ("mlp", {"hidden_layers": -1}),
        ("likelihood", {"hidden_features": 1.5}),
        ("likelihood", {"hidden_layers": -1}),
        ("likelihood", {"num_components": 0}),
    ],
)
def test_proxies_of_impossible_size(model, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least ., got {value}"):
        proxy_nn(model, **wrong)(torch.randn(20, 2), torch.randn(20, 5))


class Uncopyable(BoxUniform):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


class Energy(nn.Module):
    """An energy network of a user's, with something wrong about what it returns."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.scale = wrong, nn.Parameter(torch.ones(()))

    def forward(self, theta, context):
        distance = (theta - context[:, :2]).square().sum(dim=-1)
        return self.wrong(-self.scale * distance)


class Fixed(nn.Module):
    def forward(self, theta, context):
        return -(theta - context).square().sum(dim=-1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda f: f.unsqueeze(-1), r"shape \(3, 2, 1\)"),
        (lambda f: f.T, r"shape \(2, 3\)"),
        (lambda f: f.mean(dim=0), r"shape \(2,\)"),
        (torch.sum, r"shape \(\)"),
    ],
)
def test_what_a_users_proxy_returns_is_looked_at(wrong, says):
    theta, context = torch.randn(20, 2), torch.randn(20, 3)
    check_network(Energy(lambda f: f), theta, context)
    with pytest.raises(ValueError, match=rf"Energy, must return energies .* returned {says} for"):
        check_network(Energy(wrong), theta, context)


@pytest.mark.parametrize(
    ("network", "error", "says"),
    [
        (Energy(torch.sqrt), ValueError, "Energy, says NaN before it was trained"),
        (Energy(torch.sum), ValueError, "Energy, must return energies of shape"),
        (Fixed(), ValueError, "Fixed, has no parameters"),
        (torch.ones(3), TypeError, "must build a module, but returned Tensor"),
    ],
)
def test_a_users_proxy_that_cannot_be_trained_is_refused(network, error, says):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((60,))
    trainer = JeffreysNPE(
        prior,
        proxy=lambda theta, context: network,
        show_progress_bars=False,
        tracker=QuietTracker(),
    )
    with pytest.raises(error, match=says):
        trainer.append_simulations(theta, theta + 0.1 * torch.randn(60, 2)).train()


def test_a_copy_shares_the_prior():
    base = Base(Uncopyable(-torch.ones(2), torch.ones(2)), torch.zeros(3, 2))
    other = copy.deepcopy(base)
    assert other.distribution is base.distribution
    assert other.anchor is not base.anchor
    assert torch.equal(other.log_prob(torch.zeros(1, 2)), base.log_prob(torch.zeros(1, 2)))


def test_a_restricted_prior_does_not_print(capsys):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    restricted = RestrictedPrior(prior, lambda theta: theta[:, 0] > 0, sample_with="rejection")
    base = Base(restricted, restricted.sample((5,)))
    capsys.readouterr()
    assert (base.sample(50)[:, 0] > 0).all()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("c", [0, 501])
def test_where_pairs_take_the_place_of_a_likelihood_they_get_its_sizes(c):
    theta, context = torch.randn(20, 2), torch.randn(20, c)
    network = proxy_nn("likelihood", hidden_features=7, common=2)(theta, context)
    assert isinstance(network, PairMLP)
    assert network.last.in_features == 7
    with pytest.raises(TypeError, match="nonsense"):
        proxy_nn("likelihood", nonsense=7)(theta, context)
