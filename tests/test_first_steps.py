"""The trial of the first steps: rates that are too high come down, all else stays as it was."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.first_steps import lower_rates
from sbi_jeffreys.training import TrainingDiverged

PRIOR = BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def simulate(num: int) -> tuple[Tensor, Tensor]:
    theta = PRIOR.sample((num,))
    return theta, theta + 0.3 * torch.randn(num, 3)


def trained(rate: float, num: int = 400, **kwargs) -> JeffreysNPE:
    trainer = JeffreysNPE(PRIOR, seed=1, show_progress_bars=False, **kwargs)
    trainer.append_simulations(*simulate(num)).train(learning_rate=rate, max_num_epochs=2)
    return trainer


def weights(trainer: JeffreysNPE) -> list[Tensor]:
    return [p.detach().clone() for p in trainer._neural_net.parameters()]


@pytest.mark.parametrize("num", [100, 400])
def test_ten_times_and_a_hundred_times_the_rate_are_the_default_in_the_end(num):
    default = trained(4e-3, num)
    assert default.summary["learning_rate_flow"] == [4e-3, 4e-3]
    for factor in (10, 100):
        torch.manual_seed(0)
        high = trained(4e-3 * factor, num, proxy_learning_rate=5e-3 * factor)
        for name in ("flow", "proxy"):
            rates = [t.summary[f"learning_rate_{name}"][-1] for t in (default, high)]
            assert rates[1] == pytest.approx(rates[0])
        # To the bit, but for the rounding of the rate.
        for ours, theirs in zip(weights(default), weights(high), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kwargs", [{"objective": "ml"}, {"density_estimator": "maf"}])
def test_where_there_is_no_simple_start_or_no_proxy_rates_are_the_users(kwargs):
    trainer = trained(4e-2, **kwargs)
    assert trainer.summary["learning_rate_flow"] == [4e-2, 4e-2]


def parts(trainer: JeffreysNPE):
    """A training that has not begun, and its data."""
    trainer.train(max_num_epochs=1)
    training = trainer._training.anew(trainer._training.settings)
    training.simple_start = True
    return training, *trainer.get_dataloaders(resume_training=True)


def test_weights_multipliers_and_random_numbers_stay_as_they_are():
    trainer = JeffreysNPE(PRIOR, seed=1, show_progress_bars=False)
    training, data, held_out = parts(trainer.append_simulations(*simulate(200)))
    before = weights(trainer)
    state, multipliers = torch.get_rng_state(), training.dual.multipliers.clone()
    lower_rates(training, data, held_out)
    assert all(map(torch.equal, before, weights(trainer)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(multipliers, training.dual.multipliers)
    assert [o.param_groups[0]["lr"] for o in training.optimizers] == [4e-3, 5e-3]


def test_steps_that_diverge_are_taken_with_lower_rates(monkeypatch):
    trainer = JeffreysNPE(PRIOR, seed=1, show_progress_bars=False)
    training, data, held_out = parts(trainer.append_simulations(*simulate(200)))
    step = type(training).step

    def fragile(self, *batch):
        if self.optimizers[0].param_groups[0]["lr"] > 1e-3:
            raise TrainingDiverged("the objective became nan.")
        return step(self, *batch)

    monkeypatch.setattr(type(training), "step", fragile)
    lower_rates(training, data, held_out)
    assert math.isclose(training.optimizers[0].param_groups[0]["lr"], 4e-4)
