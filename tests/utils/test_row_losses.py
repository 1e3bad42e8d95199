"""Losses at held-out rows: bounded where there are outliers, and only there."""

import torch

from sbi_jeffreys.utils.row_losses import bounded


def test_outliers_are_bounded():
    losses = torch.cat((torch.linspace(0, 1, 9), torch.tensor([1e6])))
    found = bounded(losses)
    assert torch.equal(found[:9], losses[:9])
    # Four interquartile ranges above the median.
    assert found[9] < 4


def test_where_most_losses_are_the_same_none_is_bounded():
    losses = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 2.0])
    assert torch.equal(bounded(losses), losses)
    assert torch.equal(bounded(losses[:1]), losses[:1])
