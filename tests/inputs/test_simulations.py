"""Simulations as users append them: where theta lies, and which rows are held out."""

import pytest
import torch
from torch.distributions import ExpTransform, Independent, TransformedDistribution, Uniform
from trainers import THETA, X, make

from sbi_jeffreys.inputs.simulations import check_same_rows, fraction_outside_prior


def test_to_look_at_simulations_draws_nothing():
    trainer, before = make(), torch.get_rng_state()
    trainer.append_simulations(THETA, X)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num", [1, 5])
def test_other_numbers_of_held_out_rows_are_other_rows(num):
    with pytest.raises(ValueError, match="held-out rows it began with"):
        check_same_rows((THETA[:1].repeat(num, 1), X[:num]), (THETA[:2], X[:2]))


def test_bounds_of_a_log_uniform_prior_are_its_own_within_rounding():
    logarithm = Uniform(torch.full((2,), -5.0), torch.full((2,), 3.0))
    prior = Independent(TransformedDistribution(logarithm, ExpTransform()), 1)
    low, high = torch.full((4, 2), -5.0).exp(), torch.full((4, 2), 3.0).exp()
    theta = torch.cat([low * (1 - 2e-7), high * (1 + 2e-7)])
    assert fraction_outside_prior(theta, prior) == 0.0
    # By a part in ten thousand, at either end.
    theta = torch.cat([low * (1 - 1e-4), high * (1 + 1e-4), high, low])
    assert fraction_outside_prior(theta, prior) == pytest.approx(0.5)


def test_one_parameter_of_very_many_outside_is_not_rounded_away():
    prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
    # In single precision the fraction of the others is one from 2^25 rows on.
    theta = torch.full((2**25, 1), 0.5)
    theta[7] = 2.0
    assert fraction_outside_prior(theta, prior) == 2**-25
