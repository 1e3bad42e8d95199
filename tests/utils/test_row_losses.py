"""Losses at held-out rows: bounded where there are outliers, and only there."""

import pytest
import torch
from scipy.stats import norm, t

from sbi_jeffreys.utils.row_losses import bounded, is_sure


def test_outliers_are_bounded():
    for num, bound in ((39, 2.6), (9, 8.1)):
        losses = torch.cat((torch.linspace(0, 1, num), torch.tensor([1e6])))
        found = bounded(losses)
        assert torch.equal(found[:num], losses[:num])
        # Four interquartile ranges above the median, of ten rows twelve.
        assert 0.85 * bound < found[num] < bound


def test_where_most_losses_are_the_same_none_is_bounded():
    losses = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 2.0])
    assert torch.equal(bounded(losses), losses)
    assert torch.equal(bounded(losses[:1]), losses[:1])


def test_what_is_sure():
    assert not is_sure(torch.ones(1))
    assert is_sure(torch.ones(2))
    # By a standard error, where rows are many.
    gains = torch.tensor([-1.0, 1.0]).repeat(5000)
    assert is_sure(gains + 0.011)
    assert not is_sure(gains + 0.009)


@pytest.mark.parametrize("num", [2, 4, 10, 100])
def test_few_rows_are_seldom_sure_of_nothing(num):
    """Of gains with mean zero: as Student's distribution says, 2 % with two rows, 16 with many."""
    torch.manual_seed(0)
    share = sum(is_sure(gains) for gains in torch.randn(4000, num)) / 4000
    expected = t.sf(t.ppf(0.99, num - 1) / norm.ppf(0.99), num - 1)
    # Four standard errors of a share.
    assert abs(share - expected) < 4 * (expected / 4000) ** 0.5
