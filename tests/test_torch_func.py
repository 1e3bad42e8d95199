"""Derivatives in theta by torch.func, and second ones by torch.autograd, in float64."""

import pytest
import torch
from torch.func import grad, hessian, vmap
from trainers import PRIOR, make

X = torch.tensor([[0.2, -0.3]]).double()
# torch.func imports a part of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

# float64 against float64; differences of gradients at a step of 1e-5 are wrong by 1e-7 or so.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
STEP, OF_DIFFERENCES = 1e-5, {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module")
def trained():
    found = {}
    for name in ("coupling_nsf", "zuko_nsf"):
        torch.manual_seed(0)
        theta = PRIOR.sample((200,))
        trainer = make(name).append_simulations(theta, theta + 0.2 * torch.randn(200, 2))
        found[name] = trainer.train(max_num_epochs=3).double()
        found[name].weight = 0.5
    return found


@pytest.fixture(params=["coupling_nsf", "zuko_nsf"])
def estimator(request, trained):
    return trained[request.param]


def density(log_prob):
    """Return the log density of one theta, shape (2,), given X."""
    return lambda theta: log_prob(theta[None, None], X)[0, 0]


def by_autograd(function, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def by_differences(function, theta):
    steps = STEP * torch.eye(2).double()
    pairs = [(by_autograd(function, theta + s), by_autograd(function, theta - s)) for s in steps]
    return torch.stack([(above - below) / (2 * STEP) for above, below in pairs])


def thetas():
    return 0.5 * PRIOR.sample((4,)).double()


@pytest.mark.parametrize("of", ["flow", "proxy"])
def test_torch_func_takes_both_models(estimator, of):
    model = estimator.flow if of == "flow" else estimator.proxy
    function = density(model.log_prob if of == "flow" else model.log_prob_unnormalized)
    theta = thetas()
    values = torch.stack([function(each) for each in theta])
    gradients = torch.stack([by_autograd(function, each) for each in theta])
    torch.testing.assert_close(vmap(function)(theta), values, **CLOSE)
    torch.testing.assert_close(vmap(grad(function))(theta), gradients, **CLOSE)
    torch.testing.assert_close(grad(function)(theta[0]), gradients[0], **CLOSE)
    expected = by_differences(function, theta[0])
    torch.testing.assert_close(hessian(function)(theta[0]), expected, **OF_DIFFERENCES)


@pytest.mark.parametrize("of", ["flow", "pool"])
def test_second_derivatives(estimator, of):
    function = density(estimator.flow.log_prob if of == "flow" else estimator.log_prob)
    for theta in thetas():
        found = torch.autograd.functional.hessian(function, theta)
        assert found.abs().max() > 1
        torch.testing.assert_close(found, by_differences(function, theta), **OF_DIFFERENCES)


@pytest.mark.parametrize("transform", [grad, vmap])
def test_the_pool_is_refused_with_a_remedy(estimator, transform):
    argument = thetas() if transform is vmap else thetas()[0]
    with pytest.raises(RuntimeError, match=r"torch\.func does not reach .* estimator\.flow"):
        transform(density(estimator.log_prob))(argument)
