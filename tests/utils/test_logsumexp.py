"""Logarithms of sums of exponentials, and of shares, are torch's, and so are their gradients."""

import pytest
import torch

from sbi_jeffreys.utils import logsumexp as module
from sbi_jeffreys.utils.logsumexp import log_softmax, logsumexp


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dim", [0, -2, 2])
def test_value_and_gradient_are_those_of_torch(scale, dim):
    """Within a few units in the last place of what they are made of."""
    value = (scale * torch.randn(5, 3, 7)).requires_grad_()
    found, expected = logsumexp(value, dim), value.logsumexp(dim)
    tolerance = 4 * torch.finfo(value.dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.rand_like(found)
    gradients = [torch.autograd.grad(each, value, weights)[0] for each in (found, expected)]
    # torch's has the rounding of the value in its exponents.
    torch.testing.assert_close(*gradients, rtol=0.0, atol=4 * tolerance * scale)


def test_both_derivatives_are_right():
    value = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: logsumexp(v, 1), value)
    assert torch.autograd.gradgradcheck(lambda v: logsumexp(v, 1), value)


def test_what_is_infinite():
    """Masked entries count for nothing; of all else torch says the same."""
    value = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf] * 3, [0.0, torch.inf, 1.0]])
    value.requires_grad_()
    found = logsumexp(value, 1)
    torch.testing.assert_close(found[0], value[0].logsumexp(0))
    assert torch.equal(found[1:], value[1:].logsumexp(1))
    assert torch.autograd.grad(found[0], value)[0][0, 1] == 0


def test_nan_is_not_hidden():
    assert logsumexp(torch.tensor([0.0, torch.nan]), 0).isnan()


def test_shares_are_zero_or_large_enough_for_products_of_two():
    """Numbers that are not normal slow down whatever is done with them."""
    value = torch.linspace(-200, 0, 2001).requires_grad_()
    shares = torch.autograd.grad(logsumexp(value, 0), value)[0]
    assert (shares == 0).any()
    assert shares[shares > 0].min() ** 2 > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dim", [0, -1])
def test_logarithms_of_shares(dim, offset):
    """An offset that all have is no part of them: a few units in the last place of what is left."""
    value = (10 * torch.randn(6, 4) + offset).requires_grad_()
    found, expected = log_softmax(value, dim), value.log_softmax(dim)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, value, weights)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_both_derivatives_of_logarithms_of_shares():
    value = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: log_softmax(v, 1), value)
    assert torch.autograd.gradgradcheck(lambda v: log_softmax(v, 1), value)


@pytest.mark.parametrize("dim", [0, -1])
def test_what_a_gpu_does_instead(dim):
    value = 50 * torch.randn(6, 4)
    value[2, 1] = -torch.inf
    found, expected = module._on_gpu(value, dim), module._on_cpu(value, dim)
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair)


def test_what_is_infinite_on_a_gpu():
    value = torch.tensor([[-torch.inf, -torch.inf], [torch.inf, 0.0]])
    least, nan = module._on_gpu(value, 1)[0]
    assert least.item() == torch.finfo(torch.float32).min
    assert nan.isnan()
