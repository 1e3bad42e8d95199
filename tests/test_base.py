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
    assert torch.equal(base.log_prob_soft(bound), base.floor.reshape(1))
    assert base.log_prob(bound).tolist() == [-math.inf]


def test_copies_share_the_prior():
    """It is the user's, and may be one that cannot be copied."""
    base = Base(BOX, BOX.sample((10,)))
    other = copy.deepcopy(base)
    assert other.distribution is base.distribution
    assert other.anchor is not base.anchor
