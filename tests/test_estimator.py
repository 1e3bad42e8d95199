"""The joint estimator: what sbi sees of it, and that it embeds x only once."""

import copy
import io
import pickle

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, Normal

from sbi_jeffreys.base import Base
from sbi_jeffreys.draws import Draws, Negatives
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.objective import batch_terms
from sbi_jeffreys.proxy import proxy_nn

# nflows, on which sbi's "nsf" is built, calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")

# Float32: flows of a few layers, evaluated in batches of another shape.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}
PRIOR = BoxUniform(-3 * torch.ones(2), 3 * torch.ones(2))


class LinearGaussian(ConditionalDensityEstimator):
    """A user's own estimator: no embedding net, x of any shape."""

    def __init__(self, theta, x):
        net = nn.Linear(x[0].numel(), theta.shape[-1])
        super().__init__(net, theta[0].shape, x[0].shape)
        self.log_scale = nn.Parameter(torch.zeros(theta.shape[-1]))

    def _given(self, condition):
        self._check_condition_shape(condition)
        loc = self.net(condition.flatten(-len(self.condition_shape)))
        return Independent(Normal(loc, self.log_scale.exp()), 1)

    def log_prob(self, input, condition, **kwargs):
        return self._given(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return self._given(condition).sample(sample_shape)


def sbi_flow(model, **fixed):
    def builder(**kwargs):
        settings = {"hidden_features": 16, "num_transforms": 2} | fixed | kwargs
        return posterior_nn(model, **settings)

    return builder


BUILDERS = {
    "ours": lambda **kwargs: flow_nn(PRIOR, hidden_features=16, num_transforms=2, **kwargs),
    "zuko_nsf": sbi_flow("zuko_nsf"),
    "zuko_maf": sbi_flow("zuko_maf"),
    # In each of nflows' autoregressive layers one parameter does not see x: some more of them.
    "maf": sbi_flow("maf", num_transforms=5),
    "nsf": sbi_flow("nsf"),
    "mdn": sbi_flow("mdn", num_components=3),
    "made": sbi_flow("made", num_mixture_components=3),
    "custom": lambda **kwargs: LinearGaussian,
}
FLOWS = pytest.mark.parametrize("name", list(BUILDERS))
# "custom" has nowhere to put one.
EMBEDDING = pytest.mark.parametrize("name", [name for name in BUILDERS if name != "custom"])


def simulate(num=300, event=(3,)):
    """The mean of the entries of x is theta_0, up to noise."""
    theta = PRIOR.sample((num,))
    x = theta[:, 0].reshape(-1, *[1] * len(event)).expand(num, *event)
    return theta, 2 * x + 5 + 0.1 * torch.randn(num, *event)


def make(name, theta, x, **kwargs):
    flow = BUILDERS[name](**kwargs)(theta, x)
    estimator = JeffreysEstimator(
        flow, theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn("mlp", hidden_features=16)
    )
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return estimator.eval()


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))


def assert_embedded_is_the_same(estimator, theta, x):
    context = estimator.embed(x)
    points = torch.stack((theta, -theta, 0.5 * theta))
    expected = estimator.log_prob(points, x)
    assert expected.shape == (3, len(x))
    torch.testing.assert_close(estimator.log_prob_embedded(points, context), expected, **CLOSE)
    theta, log_prob = estimator.sample_with_log_prob(3, context)
    torch.testing.assert_close(estimator.log_prob(theta, x), log_prob, **CLOSE)
    # One context for each point: another x for each slice.
    shifted = torch.stack((x, x.roll(1, 0), x.roll(2, 0)))
    per_slice = torch.stack([estimator.log_prob(p[None], y)[0] for p, y in
                             zip(points, shifted, strict=True)])  # fmt: skip
    contexts = torch.stack([estimator.embed(y) for y in shifted])
    torch.testing.assert_close(estimator.log_prob_embedded(points, contexts), per_slice, **CLOSE)
    assert (expected - per_slice)[1:].abs().max() > 1e-2


@FLOWS
def test_log_prob_embedded(name):
    theta, x = simulate()
    assert_embedded_is_the_same(make(name, theta, x), theta[:20], x[:20])


@EMBEDDING
def test_log_prob_embedded_with_an_embedding_net(name):
    theta, x = simulate(event=(1, 4, 4))
    estimator = make(name, theta, x, embedding_net=conv_net())
    assert estimator.embed(x).shape == (300, 4)
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


def test_log_prob_embedded_of_images_without_an_embedding_net():
    theta, x = simulate(event=(1, 4, 4))
    estimator = make("custom", theta, x)
    assert estimator.embed(x).shape == (300, 16)
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


@FLOWS
def test_it_is_the_flow_to_sbi(name):
    theta, x = simulate()
    estimator = make(name, theta, x)
    assert isinstance(estimator, ConditionalDensityEstimator)
    assert estimator.input_shape == (2,)
    assert estimator.condition_shape == (3,)
    assert estimator.net is estimator.flow.net
    assert estimator.embedding_net is estimator.flow.embedding_net
    points, x = theta[None, :5], x[:5]
    assert (estimator.log_prob(points, x) == estimator.flow.log_prob(points, x)).all()
    torch.testing.assert_close(estimator.loss(points[0], x), -estimator.log_prob(points, x)[0])
    torch.manual_seed(1)
    expected = estimator.flow.sample(torch.Size((4,)), x)
    torch.manual_seed(1)
    assert (estimator.sample(torch.Size((4,)), x) == expected).all()


@pytest.fixture(scope="module")
def trained():
    """Flows that have learned that theta_0 follows x."""
    found = {}

    def get(name, embedding):
        if (name, embedding) not in found:
            event = (1, 4, 4) if embedding else (3,)
            theta, x = simulate(500, event)
            kwargs = {"embedding_net": conv_net()} if embedding else {}
            estimator = make(name, theta, x, **kwargs).train()
            # The linear map works on raw x, ten times as large as what the others see.
            steps = 400 if name == "custom" else 50
            optimizer = torch.optim.Adam(estimator.flow.parameters(), lr=2e-2)
            for _ in range(steps):
                optimizer.zero_grad()
                estimator.loss(theta, x).mean().backward()
                optimizer.step()
            found[name, embedding] = estimator.eval()
        return found[name, embedding]

    return get


@pytest.mark.parametrize(
    ("name", "embedding"),
    [(name, False) for name in BUILDERS] + [("ours", True), ("nsf", True), ("mdn", True)],
)
def test_samples_belong_to_their_x(trained, name, embedding):
    estimator = trained(name, embedding)
    true = torch.tensor([-2.0, 2.0, 0.0])
    event = (1, 4, 4) if embedding else (3,)
    x = (2 * true + 5).reshape(-1, *[1] * len(event)).expand(3, *event).contiguous()
    samples = estimator.sample_embedded(500, estimator.embed(x))
    assert samples.shape == (500, 3, 2)
    assert not samples.requires_grad
    # Posteriors two apart; half-trained flows are less than half of that off.
    median = samples[..., 0].median(dim=0).values
    assert ((median - true).abs() < 0.9).all()
    direct = estimator.sample(torch.Size((500,)), x)[..., 0].median(dim=0).values
    assert ((median - direct).abs() < 0.5).all()


def test_half_a_proxy_is_refused():
    theta, x = torch.randn(20, 2), torch.randn(20, 3)
    with pytest.raises(ValueError, match="base without build_proxy"):
        JeffreysEstimator(BUILDERS["ours"]()(theta, x), theta, x, base=Base(PRIOR, theta))


@FLOWS
def test_every_parameter_has_one_entry(name):
    theta, x = simulate(100)
    estimator = make(name, theta, x)
    tensors = [value.data_ptr() for value in estimator.state_dict().values() if value.numel()]
    assert len(tensors) == len(set(tensors))
    names = [key for key, _ in estimator.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in estimator.parameters()})
    assert all(key.startswith(("flow.", "proxy.network.")) for key in names)
    # Flow and proxy share no parameter.
    flow = {id(p) for p in estimator.flow.parameters()}
    assert not flow & {id(p) for p in estimator.proxy.parameters()}


@EMBEDDING
def test_parameters_of_the_embedding_have_one_entry(name):
    theta, x = simulate(100, (1, 4, 4))
    embedding = conv_net()
    estimator = make(name, theta, x, embedding_net=embedding)
    names = [key for key, _ in estimator.named_parameters(remove_duplicate=False)]
    shared = [key for key, value in estimator.named_parameters(remove_duplicate=False)
              if any(value is p for p in embedding.parameters())]  # fmt: skip
    assert len(shared) == 4
    assert len(names) == len({id(p) for p in estimator.parameters()})


def everything(estimator, theta, x):
    """What users look at: densities of both models and seeded samples."""
    torch.manual_seed(3)
    with torch.no_grad():
        return (
            estimator.log_prob(theta[None], x),
            estimator.sample(torch.Size((3,)), x),
            estimator.proxy.log_ratio(theta, x),
            estimator.proxy.log_prob_unnormalized(theta, x),
            estimator.log_prob_embedded(theta[None], estimator.embed(x)),
        )


def by_pickle(estimator):
    return pickle.loads(pickle.dumps(estimator))


def by_torch_save(estimator):
    file = io.BytesIO()
    torch.save(estimator, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@FLOWS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save])
def test_copies_are_equal_and_independent(name, duplicate):
    theta, x = simulate(100)
    estimator = make(name, theta, x)
    theta, x = theta[:10], x[:10]
    before = everything(estimator, theta, x)
    other = duplicate(estimator)
    for ours, theirs in zip(before, everything(other, theta, x), strict=True):
        assert (ours == theirs).all()
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(torch.randn_like(parameter))
    for ours, theirs in zip(before, everything(other, theta, x), strict=True):
        assert (ours == theirs).all()
    assert (everything(estimator, theta, x)[2] != before[2]).any()


@EMBEDDING
def test_a_copied_proxy_embeds_with_its_own_flow(name):
    theta, x = simulate(100, (1, 4, 4))
    estimator = make(name, theta, x, embedding_net=conv_net())
    other = copy.deepcopy(estimator)
    before = other.proxy.log_ratio(theta, x)
    with torch.no_grad():
        for parameter in estimator.flow.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert (other.proxy.log_ratio(theta, x) == before).all()
    assert (estimator.proxy.log_ratio(theta, x) != before).any()


def test_state_dict_restores_everything():
    theta, x = simulate(100)
    for name in ("ours", "custom"):
        estimator, other = make(name, theta, x), make(name, theta, 3 * x)
        other.load_state_dict(estimator.state_dict())
        points, data = theta[:10], x[:10]
        for ours, theirs in zip(
            everything(estimator, points, data), everything(other, points, data), strict=True
        ):
            assert (ours == theirs).all()


@pytest.mark.parametrize("name", ["ours", "zuko_maf", "maf", "nsf", "mdn", "made"])
@pytest.mark.parametrize("with_proxy", [True, False])
def test_embedding_net_runs_once_per_batch(name, with_proxy):
    theta, x = simulate(100, (1, 4, 4))
    embedding = conv_net()
    estimator = make(name, theta, x, embedding_net=embedding)
    if not with_proxy:
        estimator = JeffreysEstimator(estimator.flow, theta, x)
    seen = []
    embedding.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    batch_terms(
        estimator,
        theta[:20],
        x[:20],
        torch.ones(20),
        Draws(),
        base_draws=Negatives(PRIOR.sample((8,))),
    )
    assert seen == [20]


def test_embedding_leaves_the_flow_as_it_was():
    theta, x = simulate(100, (1, 4, 4))
    estimator = make("nsf", theta, x, embedding_net=conv_net())
    before = repr(estimator)
    estimator.sample_embedded(2, estimator.embed(x[:3]))
    estimator.log_prob_embedded(theta[None, :3], estimator.embed(x[:3]))
    assert repr(estimator) == before
    assert estimator.condition_shape == (1, 4, 4)
    assert estimator.flow.condition_shape == (1, 4, 4)
    # The user's net, not the stand-in.
    assert any(isinstance(m, nn.Conv2d) for m in estimator.flow.modules())


def test_rows_that_are_no_numbers_do_not_count():
    theta, x = simulate(100)
    expected = make("custom", theta, x).embed(x)
    x, theta = torch.cat((x, x[:1] * torch.nan)), torch.cat((theta, theta[:1]))
    torch.testing.assert_close(make("custom", theta, x).embed(x[:-1]), expected)


def test_constant_entries_of_x():
    theta, x = simulate(100)
    x[:, 1] = 7.0
    estimator = make("custom", theta, x)
    assert estimator.embed(x).isfinite().all()
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


@pytest.mark.parametrize("name", ["ours", "mdn", "custom"])
def test_without_a_proxy(name):
    theta, x = simulate(100)
    flow = BUILDERS[name]()(theta, x)
    estimator = JeffreysEstimator(flow, theta, x)
    assert estimator.proxy is None
    assert {id(p) for p in estimator.parameters()} == {id(p) for p in flow.parameters()}
    assert estimator.log_prob_embedded(theta[None], estimator.embed(x)).shape == (1, 100)


@pytest.mark.parametrize("name", ["ours", "maf", "custom"])
def test_double_precision(name):
    theta, x = simulate(100)
    estimator = make(name, theta, x).double()
    theta, x = theta[:10].double(), x[:10].double()
    context = estimator.embed(x)
    assert context.dtype == torch.float64
    torch.testing.assert_close(
        estimator.log_prob_embedded(theta[None], context), estimator.log_prob(theta[None], x)
    )


def build():
    theta = PRIOR.sample((60,))
    x = theta.repeat(1, 2) + 0.3 * torch.randn(60, 4)
    embedding = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    flow = flow_nn(PRIOR, hidden_features=16, embedding_net=embedding)(theta, x).train()
    return flow, embedding, theta, x


def test_building_a_proxy_leaves_running_statistics_alone():
    flow, embedding, theta, x = build()
    before = embedding[1].running_mean.clone()
    JeffreysEstimator(flow, theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn())
    assert torch.equal(embedding[1].running_mean, before)


def test_x_of_another_type_is_embedded_in_that_of_the_weights():
    flow, _, theta, x = build()
    estimator = JeffreysEstimator(flow, theta, x).eval()
    found = estimator.embed(x.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, estimator.embed(x))


@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["flow alone", "pool"])
@pytest.mark.parametrize("name", ["ours", "maf"])
def test_parameters_and_x_of_another_type_are_taken(name, weight):
    theta, x = simulate(100)
    estimator = make(name, theta, x).eval()
    estimator.weight = weight
    theta, x = theta[:10], x[:10]
    expected = estimator.log_prob(theta[None], x)
    for other in (theta.double(), x), (theta, x.double()), (theta.double(), x.double()):
        found = estimator.log_prob(other[0][None], other[1])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(estimator.loss(*other), -expected[0])
    assert estimator.sample(torch.Size((3,)), x.double()).shape == (3, 10, 2)
    whole = x.round()
    torch.testing.assert_close(
        estimator.log_prob(theta[None], whole.long()), estimator.log_prob(theta[None], whole)
    )


def test_a_pool_takes_no_arguments_of_the_flow():
    theta, x = torch.randn(30, 2), torch.randn(30, 2)
    estimator = make("ours", theta, x)
    estimator.weight = 0.5
    with pytest.raises(TypeError, match="takes no nonsense: it is for the flow alone"):
        estimator.log_prob(theta, x, nonsense=1)
    with pytest.raises(TypeError, match="sample of the pool of flow and proxy takes no nonsense"):
        estimator.sample(torch.Size((2,)), x, nonsense=1)
