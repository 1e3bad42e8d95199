"""The sum of squares is torch's to the bit, and so is its gradient."""

import pytest
import torch

from sbi_jeffreys.utils.squares import sum_of_squares


@pytest.mark.parametrize("dim", [0, -2, 2])
def test_value_and_gradient_are_those_of_torch(dim):
    value = torch.randn(5, 3, 7, requires_grad=True)
    found, expected = sum_of_squares(value, dim), value.square().sum(dim)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, value, weights)[0] for each in (found, expected)]
    assert torch.equal(*gradients)


def test_both_derivatives_are_right():
    value = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: sum_of_squares(v, 1), value)
    assert torch.autograd.gradgradcheck(lambda v: sum_of_squares(v, 1), value)
