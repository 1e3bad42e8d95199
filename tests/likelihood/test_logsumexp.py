"""The logarithm of a sum of exponentials is torch's, and so are its gradients."""

import pytest
import torch

from sbi_jeffreys.likelihood.logsumexp import logsumexp


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
