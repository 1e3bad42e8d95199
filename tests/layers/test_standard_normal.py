"""The end of the flow has zuko's density, and what comes with a distribution."""

import pytest
import torch
from zuko.distributions import DiagNormal

from sbi_jeffreys.layers.standard_normal import StandardNormal


@pytest.mark.parametrize("rows", [(), (7,), (3, 7)])
def test_density_and_gradient_are_those_of_zuko(rows):
    ours, theirs = (kind(torch.zeros(4), torch.ones(4)) for kind in (StandardNormal, DiagNormal))
    value = (3 * torch.randn(*rows, 4)).requires_grad_()
    found, expected = ours.log_prob(value), theirs.log_prob(value)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, value, weights)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_it_can_be_expanded_and_drawn_from():
    expanded = StandardNormal(torch.zeros(2), torch.ones(2)).expand((5,))
    assert isinstance(expanded, StandardNormal)
    assert expanded.sample((3,)).shape == (3, 5, 2)
    assert expanded.log_prob(torch.zeros(3, 5, 2)).shape == (3, 5)


def test_a_value_that_all_distributions_share_has_a_density_for_each():
    expanded = StandardNormal(torch.zeros(2), torch.ones(2)).expand((5, 4))
    assert expanded.log_prob(torch.zeros(2)).shape == (5, 4)
    assert expanded.log_prob(torch.zeros(4, 2)).shape == (5, 4)
