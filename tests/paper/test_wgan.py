"""WGAN-GP: it learns where the data are, and its penalty is what it says."""

import pytest
import torch
from torch import nn

from sbi_jeffreys.paper.wgan import _gradient_penalty, train_wgan


def test_gradient_penalty_of_a_linear_critic():
    critic = nn.Linear(2, 1)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3.0, 4.0]]))
    # The slope is 5 everywhere: (5 - 1)².
    found = _gradient_penalty(critic, torch.randn(7, 2), torch.randn(7, 2))
    assert found.item() == pytest.approx(16.0)
    found.backward()
    assert critic.weight.grad is not None


def test_it_finds_a_gaussian():
    torch.manual_seed(0)
    data = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(200, 2)
    *_, last = train_wgan(data, learning_rate=1e-3, steps=100, look=50, num=1000, batch_size=50)
    # A GAN is no estimator of moments: half a standard deviation, and a factor of two.
    assert torch.all((last.mean(dim=0) - data.mean(dim=0)).abs() < 0.5 * data.std(dim=0))
    ratio = last.std(dim=0) / data.std(dim=0)
    assert torch.all((ratio > 0.5) & (ratio < 2))


def test_looks():
    looks = list(train_wgan(torch.randn(20, 3), learning_rate=1e-3, steps=5, look=2, num=4))
    assert [look.shape for look in looks] == [(4, 3), (4, 3)]
