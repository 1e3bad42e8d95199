"""The joint estimator: what sbi sees of it, and its copies."""

import copy
import io
import pickle

import pytest
import torch
from estimators import BUILDERS, EMBEDDING, FLOWS, PRIOR, conv_net, make, simulate
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator

from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator

# nflows, on which sbi's "nsf" is built, calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")


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


@pytest.mark.parametrize("weight", [0.0, 0.5], ids=["flow alone", "pool"])
def test_it_warns_of_x_far_from_the_training_data(weight):
    theta, x = simulate(100)
    estimator = make("ours", theta, x)
    estimator.weight = weight
    # x is about 2 theta_0 + 5 with |theta_0| < 3.
    estimator.sample(torch.Size((2,)), torch.tensor([[15.0] * 3]))
    seen = torch.tensor([[5.0] * 3, [40.0] * 3, [500.0] * 3])
    with pytest.warns(UserWarning, match="2 of 3 x lie far from all training data, up to 4.*units"):
        assert estimator.sample(torch.Size((2,)), seen).shape == (2, 3, 2)


def test_a_pool_takes_no_arguments_of_the_flow():
    theta, x = torch.randn(30, 2), torch.randn(30, 2)
    estimator = make("ours", theta, x)
    estimator.weight = 0.5
    with pytest.raises(TypeError, match="takes no nonsense: it is for the flow alone"):
        estimator.log_prob(theta, x, nonsense=1)
    with pytest.raises(TypeError, match="sample of the pool of flow and proxy takes no nonsense"):
        estimator.sample(torch.Size((2,)), x, nonsense=1)
