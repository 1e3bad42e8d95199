"""The base density stands on a parameter that has a density."""

import copy
import math

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import Beta, Gamma, Independent, Uniform

from sbi_jeffreys.base import WALL, Base

ONE = torch.ones(1)
BOX = BoxUniform(torch.zeros(2), 2 * torch.ones(2))


@pytest.mark.parametrize(
    ("prior", "row"),
    [
        # torch counts the upper bound to the support, but gives it no density.
        (BOX, [1.0, 2.0]),
        (Independent(Beta(2 * torch.ones(2), 2 * torch.ones(2)), 1), [0.0, 0.5]),
        # An infinite one.
        (MultipleIndependent([Gamma(0.5 * ONE, ONE), Uniform(0 * ONE, ONE)]), [0.0, 0.5]),
    ],
)
@pytest.mark.parametrize("others", [0, 5])
def test_a_parameter_without_a_density_is_no_anchor(prior, row, others):
    theta = torch.cat((torch.tensor([row]), prior.sample((others,)).reshape(others, 2)))
    base = Base(prior, theta)
    assert base.floor.isfinite()
    assert prior.log_prob(base.anchor).isfinite()
    if others:
        assert torch.equal(base.anchor, theta[1:2])


def test_one_parameter_of_a_high_density_does_not_lift_the_floor():
    prior = Independent(Gamma(0.1 * torch.ones(2), torch.ones(2)), 1)
    torch.manual_seed(0)
    theta = prior.sample((100,)).clamp_min(1e-6)
    odd = torch.full((1, 2), 1e-30)
    floors = [Base(prior, torch.cat(rows)).floor for rows in ((theta, odd), (odd, theta))]
    # At the odd one the density is higher by a hundred nats; it is one of a hundred parameters.
    assert floors[1] == pytest.approx(floors[0].item(), abs=1.0)
    assert prior.log_prob(odd)[0] > floors[0] + 100


def test_the_first_parameter_is_the_anchor_if_it_can_be():
    theta = BOX.sample((10,))
    before = torch.get_rng_state()
    base = Base(BOX, theta)
    assert torch.equal(base.anchor, theta[:1])
    assert base.floor.item() == pytest.approx(-2 * math.log(2) - WALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_where_the_support_has_no_density_the_soft_base_is_at_its_floor():
    """As of the upper bound of a uniform: minus infinity there would end a training."""
    base, bound = Base(BOX, BOX.sample((10,))), torch.tensor([[1.0, 2.0]])
    assert base.floor - WALL < base.log_prob_soft(bound).item() <= base.floor
    assert base.log_prob(bound).tolist() == [-math.inf]


def test_beyond_the_floor_the_soft_base_falls_like_a_gaussian():
    """What lies outside of the support has little mass in all, however far out one looks."""
    theta = BOX.sample((1000,))
    base = Base(BOX, theta)
    # One of the parameters varies less than the other, and both lie outside of their bounds.
    for direction in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        distances = torch.tensor([10.0, 20.0, 40.0]).unsqueeze(-1)
        there = theta.mean(dim=0) + theta.std(dim=0) * distances * direction
        expected = base.floor - 0.5 * (distances[:, 0].square() - 2)
        torch.testing.assert_close(base.log_prob_soft(there), expected)
    # In shapes that are no rows as well.
    there = there.reshape(3, 1, 2)
    assert torch.equal(base.log_prob_soft(there)[:, 0], base.log_prob_soft(there[:, 0]))


def test_copies_share_the_prior():
    """It is the user's, and may be one that cannot be copied."""
    base = Base(BOX, BOX.sample((10,)))
    other = copy.deepcopy(base)
    assert other.distribution is base.distribution
    for name in ("anchor", "floor", "units"):
        assert getattr(other, name) is not getattr(base, name)
