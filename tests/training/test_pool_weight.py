"""Held-out data choose the weight of the proxy in the pool, and what stands beside it."""

import torch
from pools import FLOW, PRIOR, Constant, gaussians, pooled, simulations

from sbi_jeffreys.training.batches import Data, ones
from sbi_jeffreys.training.held_out import best_pooling
from sbi_jeffreys.utils.row_losses import lowest, surest


def pool_weight(estimator, data, kernel=ones):
    return best_pooling(estimator, data, "cpu", kernel).weight


def test_held_out_data_choose_the_weight():
    # Data as the proxy says, as the flow says, and in between: precisions 4, 1 and 1.75.
    estimator = gaussians(0.0, shift=0.0, scale=0.5)
    of_proxy, of_flow, between = (
        pool_weight(estimator, simulations(500, scale))
        for scale in (0.5, FLOW, pooled(0.25, scale=0.5)[1])
    )
    assert of_flow == 0.0
    # One step of the grid is less than 500 rows can tell.
    assert 0.125 <= between <= 0.375
    assert of_proxy == 0.75


def test_a_proxy_that_says_no_number_has_no_weight():
    estimator = gaussians(0.0)
    estimator.proxy.network = Constant(float("nan"))
    assert pool_weight(estimator, simulations(50, FLOW)) == 0.0


def test_few_rows_choose_only_what_they_can_tell():
    # A gain of 0.1 nats, which a row tells with a standard deviation of one: 64 rows know it to an
    # eighth, 400 to a twentieth.
    gain = 0.1 + torch.tensor([1.0, -1.0])
    for num, chosen in ((64, 0), (400, 1)):
        rows = torch.stack((torch.zeros(num), -gain.repeat(num // 2)))
        assert surest(rows) == chosen
    # Two far rows have no more say than others.
    rows = torch.stack((torch.linspace(0, 1, 200), torch.linspace(0.1, 1.1, 200)))
    rows[0, -2:] = 1000.0
    assert surest(rows) == 0
    # The same where most rows have no weight: those that have some are no outliers.
    rows = torch.stack((torch.linspace(0, 1, 80), torch.linspace(-0.5, 0.5, 80)))
    weights = (torch.arange(80) % 8 == 0).float()
    assert surest(rows, weights) == 1
    # Of one row nobody knows what it can tell.
    assert surest(torch.tensor([[1.0], [0.0]])) == 0


def test_the_weight_is_that_of_the_lowest_mean():
    # A gain that four rows cannot be sure of.
    gain = torch.tensor([1.1, -0.9, 1.1, -0.9])
    rows = torch.stack((torch.zeros(4), 0.1 * torch.ones(4), -gain))
    assert (lowest(rows), surest(rows)) == (2, 0)
    # Rows that do not count, a far one and a loss that is no number.
    assert lowest(rows, torch.tensor([0.0, 1.0, 0.0, 1.0])) == 0
    far = torch.stack((torch.linspace(0, 1, 200), torch.linspace(0.1, 1.1, 200)))
    far[0, -1] = 1000.0
    assert lowest(far) == 0
    rows[2, 0] = torch.nan
    assert lowest(rows) == 0
    # Ties go to the smaller weight, and one row tells nothing.
    assert lowest(torch.zeros(3, 5)) == 0
    assert lowest(torch.tensor([[1.0], [0.0]])) == 0


def test_pool_weight_under_a_kernel_of_few_rows():
    estimator, data = gaussians(0.0, shift=0.0, scale=0.5), simulations(500, 0.5)
    assert pool_weight(estimator, data) == 0.75
    assert pool_weight(estimator, data, lambda x: (x[:, 0] > 4).float()) > 0.3


def test_the_kernel_weighs_the_rows_that_choose_the_weight():
    # Data as the proxy says where x_0 is positive, as the flow says elsewhere.
    x = PRIOR.sample((500,))
    positive = x[:, :1] > 0
    theta = x + torch.where(positive, 0.5, 1.0) * torch.randn(500, 2)
    data = Data(theta, x, torch.ones(500, 1), torch.arange(500))
    estimator = gaussians(0.0, shift=0.0, scale=0.5)
    found = [
        pool_weight(estimator, data, lambda x, s=s: torch.where(s * x[:, 0] > 0, 1.0, 0.3))
        for s in (1, -1)
    ]
    assert found[0] > found[1]
