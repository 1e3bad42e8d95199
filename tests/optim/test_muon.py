"""Muon: orthogonal updates for matrices, Adam for the rest."""

import pickle

import pytest
import torch
from torch import nn

from sbi_jeffreys.optim.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 16, 12)])
def test_orthogonalize_brings_singular_values_near_to_one(shape):
    matrices = torch.randn(shape)
    before, after = (
        torch.linalg.svd(m, full_matrices=False) for m in (matrices, orthogonalize(matrices))
    )
    # The quintic iteration oscillates around one; tiny singular values need more steps.
    kept = 0.1 * before.S.amax(dim=-1, keepdim=True) < before.S
    assert after.S[kept].min() > 0.6
    assert after.S.max() < 1.3
    # Directions stay what they are.
    alignment = (before.U * (orthogonalize(matrices) @ before.Vh.mT)).sum(dim=-2)
    assert alignment[kept].min() > 0.5


def test_zero_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 8)), torch.zeros(2, 8, 8))


def test_matrices_get_updates_of_the_stated_size_and_the_rest_is_adams():
    network = nn.Sequential(nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    twin = nn.Sequential(nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    twin.load_state_dict(network.state_dict())
    before = [p.detach().clone() for p in network.parameters()]
    x = torch.randn(64, 12)
    optimizers = Muon(network.parameters(), lr=1e-2), torch.optim.Adam(twin.parameters(), lr=1e-2)
    for model, optimizer in zip((network, twin), optimizers, strict=True):
        model(x).exp().mean().backward()
        optimizer.step()
    for p, q, old in zip(network.parameters(), twin.parameters(), before, strict=True):
        if p.dim() == 2 and min(p.shape) >= 8:
            # 0.6 of the rate where the gradient has full rank, singular values of 0.7 to 1.2.
            rank = torch.linalg.matrix_rank(p.grad, rtol=1e-3).item()
            size = 6e-3 * (rank / min(p.shape)) ** 0.5
            found = (p - old).square().mean().sqrt().item()
            assert found == pytest.approx(size, rel=0.35)
        else:
            torch.testing.assert_close(p, q)


def test_what_is_to_be_kept_is_adams():
    layer = nn.Linear(16, 16)
    optimizer = Muon(layer.parameters(), lr=1e-2, keep=[layer.weight])
    before = layer.weight.detach().clone()
    layer(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    # Adam's first step has the size of its rate, everywhere.
    torch.testing.assert_close(
        (layer.weight - before).abs(), torch.full((16, 16), 1e-2), rtol=1e-3, atol=1e-5
    )


def test_follows_a_rate_that_is_changed_and_does_without_gradients():
    layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    optimizer = Muon(layers.parameters(), lr=1e-2)
    optimizer.lr = 0.0
    before = [p.detach().clone() for p in layers.parameters()]
    layers[0](torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    for p, old in zip(layers.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_least_squares_are_solved():
    target = torch.randn(16, 16)
    layer = nn.Linear(16, 16, bias=False)
    optimizer = Muon(layer.parameters(), lr=2e-2)
    for step in range(300):
        optimizer.lr = 2e-2 * (1 - step / 300)
        optimizer.zero_grad()
        (layer.weight - target).square().mean().backward()
        optimizer.step()
    assert (layer.weight - target).square().mean() < 0.01


def test_moments_survive_pickling():
    layer = nn.Linear(8, 8)
    optimizer = Muon(layer.parameters(), lr=1e-2)
    x = torch.randn(4, 8)
    layer(x).square().sum().backward()
    optimizer.step()
    twin, own = pickle.loads(pickle.dumps((layer, optimizer)))
    for model, its in ((layer, optimizer), (twin, own)):
        its.zero_grad()
        model(x).square().sum().backward()
        its.step()
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


@pytest.mark.parametrize("shape", [(8, 8), (12, 8)])
def test_two_steps_by_hand(shape):
    parameter, expected = nn.Parameter(torch.zeros(shape)), torch.zeros(shape)
    optimizer, momentum = Muon([parameter], lr=1e-2), torch.zeros(shape)
    for gradient in torch.randn(2, *shape):
        parameter.grad = gradient
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        # Nesterov's: the gradient counts once more.
        update = orthogonalize(0.95 * momentum + 0.05 * gradient)
        expected -= 0.6e-2 * max(shape) ** 0.5 * update
        torch.testing.assert_close(parameter.detach(), expected)
