"""A network whose units learn how sharply they bend."""

import pytest
import torch
from torch.nn.functional import silu

from sbi_jeffreys.likelihood.network import BendingMLP, mlp
from sbi_jeffreys.optim.adam import Adam


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _bent(*, layers=2):
    network = BendingMLP(3, 5, layers, 4).double()
    with torch.no_grad():
        network.sharpness.normal_(std=0.1)
    return network


def test_units_are_silu_of_their_own_sharpness():
    network, theta = _bent(), torch.randn(7, 3, dtype=torch.float64)
    # Ten times as fast as a weight, and relative to the others of a layer.
    beta = torch.exp(10.0 * (network.sharpness - network.sharpness.mean(1, keepdim=True)))
    first = silu(beta[0] * network[0](theta)) / beta[0]
    second = silu(beta[1] * network[2](first)) / beta[1]
    torch.testing.assert_close(network(theta), network[4](second))


def test_starts_as_an_ordinary_network_and_draws_the_same_weights():
    torch.manual_seed(1)
    network = BendingMLP(3, 5, 2, 4)
    torch.manual_seed(1)
    plain = mlp(3, 5, 2, 4)
    theta = torch.randn(7, 3)
    torch.testing.assert_close(network(theta), plain(theta))


def test_all_units_sharper_is_nothing_new():
    network, theta = _bent(), torch.randn(7, 3, dtype=torch.float64)
    before = network(theta)
    with torch.no_grad():
        network.sharpness += torch.tensor([[0.3], [-0.2]])
    torch.testing.assert_close(network(theta), before)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_an_ordinary_network_says_the_same(layers):
    network, theta = _bent(layers=layers), torch.randn(7, 3, dtype=torch.float64)
    plain = mlp(3, 5, layers, 4).double()
    plain.load_state_dict(network.plain_weights())
    torch.testing.assert_close(plain(theta), network(theta))


def test_takes_weights_of_an_ordinary_network():
    network, theta = _bent(), torch.randn(7, 3, dtype=torch.float64)
    plain = mlp(3, 5, 2, 4).double()
    network.load_state_dict(plain.state_dict())
    assert not network.sharpness.any()
    torch.testing.assert_close(network(theta), plain(theta))


def test_its_own_weights_come_back_with_sharpness():
    network, other = _bent(), _bent()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.sharpness, network.sharpness)


def test_gradients_are_those_of_differences():
    network, theta = _bent(), torch.randn(7, 3, dtype=torch.float64)

    def say(sharpness):
        return torch.func.functional_call(network, {"sharpness": sharpness}, (theta,))

    assert torch.autograd.gradcheck(say, (network.sharpness.detach().requires_grad_(),))


def test_finds_a_kink_sooner_than_an_ordinary_network():
    # Squared errors for |theta| were 0.07 to 0.26 of an ordinary network's, over eight draws of the
    # weights.
    theta = torch.linspace(-2, 2, 400).unsqueeze(-1)
    errors = {}
    for build in (mlp, BendingMLP):
        torch.manual_seed(3)
        network = build(1, 32, 2, 1)
        optimizer = Adam(network.parameters(), 5e-3)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (network(theta) - theta.abs()).square().mean()
            loss.backward()
            optimizer.step()
        errors[build] = loss.item()
    assert errors[BendingMLP] < 0.5 * errors[mlp]
