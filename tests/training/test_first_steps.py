"""The trial of the first steps: rates that are too high come down, all else stays as it was."""

import threading
import warnings
from dataclasses import replace

import pytest
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.training.descent import TrainingDiverged
from sbi_jeffreys.training.first_steps import check_rates

PRIOR = BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3))


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
@pytest.mark.parametrize("factor", [10, 1000])
def test_rates_that_are_too_high_are_the_default_in_the_end(num, factor):
    default = trained(4e-3, num)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match=r"is too high: .* goes on with 0.004 and 0.005") as got:
        high = trained(4e-3 * factor, num, proxy_learning_rate=5e-3 * factor)
    assert got[0].filename == __file__
    for name in ("flow", "proxy"):
        rates = [t.summary[f"learning_rate_{name}"] for t in (default, high)]
        assert rates[0] == rates[1]
    assert all(map(torch.equal, weights(default), weights(high)))


def test_a_rate_up_to_the_default_is_the_users():
    with pytest.warns(RuntimeWarning, match="proxy_learning_rate=1e-05 is too high"):
        trainer = trained(4e-1, proxy_learning_rate=1e-5)
    assert trainer.summary["learning_rate_proxy"] == [1e-5, 1e-5]
    assert trainer.summary["learning_rate_flow"] == [4e-3, 4e-3]


def test_what_steps_lose_and_win_back_counts():
    # Seed 1 of a reviewer's task: after the fourth step at ten times the rate most is won back.
    box = BoxUniform(-2 * torch.ones(5), 2 * torch.ones(5))
    theta = box.sample((500,))
    x = torch.cat((theta.sin(), theta.square()), dim=1)
    trainer = JeffreysNPE(box, seed=1, show_progress_bars=False)
    trainer.append_simulations(theta, x + 0.1 * torch.randn_like(x))
    with pytest.warns(RuntimeWarning, match="is too high"):
        trainer.train(learning_rate=4e-2, max_num_epochs=1)


@pytest.mark.parametrize("kwargs", [{"objective": "ml"}, {"density_estimator": "maf"}])
def test_where_there_is_no_simple_start_or_no_proxy_rates_are_the_users(kwargs):
    trainer = trained(4e-2, **kwargs)
    assert trainer.summary["learning_rate_flow"] == [4e-2, 4e-2]


def test_a_flow_of_other_sizes_has_a_start_to_lose_too():
    with pytest.warns(RuntimeWarning, match="is too high"):
        trained(4e-1, density_estimator=flow_nn(PRIOR, hidden_features=20))


def test_whoever_asks_again_for_rates_that_were_too_high_is_told_again():
    trainer = JeffreysNPE(PRIOR, seed=1, show_progress_bars=False)
    trainer.append_simulations(*simulate(200))
    first = {"learning_rate": 0.4, "max_num_epochs": 1, "force_first_round_loss": True}
    for again in (False, True):
        with pytest.warns(RuntimeWarning, match="is too high"):
            trainer.train(**first, retrain_from_scratch=again)
    with warnings.catch_warnings():
        # It keeps its rates, as in sbi.
        warnings.simplefilter("error", RuntimeWarning)
        trainer.train(learning_rate=0.4, max_num_epochs=2, resume_training=True)
    with pytest.warns(RuntimeWarning, match="0.4 was too high in an earlier call"):
        trainer.train(**first)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(3))
    theta = proposal.sample((100,), show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(100, 3), proposal=proposal)
    # Later rounds have losses that do not tell.
    for again in (False, True):
        with pytest.warns(RuntimeWarning, match="0.4 was too high in an earlier call"):
            trainer.train(learning_rate=0.4, max_num_epochs=1, retrain_from_scratch=again)
    assert trainer.summary["learning_rate_flow"] == [4e-3] * 6


def parts(rate: float, **kwargs):
    """A trainer, its training that has not begun, and its data."""
    trainer = JeffreysNPE(PRIOR, seed=1, show_progress_bars=False)
    trainer.append_simulations(*simulate(200)).train(max_num_epochs=1, **kwargs)
    training = trainer._training.anew(replace(trainer._training.settings, learning_rate=rate))
    training.simple_start = True
    return trainer, training, *trainer.get_dataloaders(resume_training=True)


def test_weights_multipliers_and_random_numbers_stay_as_they_are():
    trainer, training, data, held_out = parts(rate=5e-3)
    before = weights(trainer)
    state, multipliers = torch.get_rng_state(), training.dual.multipliers.clone()
    assert not check_rates(training, data, held_out)
    assert all(map(torch.equal, before, weights(trainer)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(multipliers, training.dual.multipliers)
    assert training.rates == [5e-3, 5e-3]


def test_steps_that_diverge_are_taken_at_the_default(monkeypatch):
    _, training, data, held_out = parts(rate=5e-3)

    def step(self, *batch):
        raise TrainingDiverged("the objective became nan.")

    monkeypatch.setattr(type(training), "step", step)
    with pytest.warns(RuntimeWarning, match="lose all"):
        assert check_rates(training, data, held_out)
    assert training.rates == [4e-3, 5e-3]


def test_a_kernel_may_be_anything_and_have_any_scale():
    class Kernel:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, x):
            return x.new_full((len(x),), 1e-3)

    _, training, data, held_out = parts(rate=4e-1, calibration_kernel=Kernel())
    with pytest.warns(RuntimeWarning, match="is too high"):
        assert check_rates(training, data, held_out)


def test_without_a_simple_start_there_is_nothing_to_lose():
    _, training, data, held_out = parts(rate=4e-1)
    training.simple_start = False
    assert not check_rates(training, data, held_out)
    assert training.rates == [4e-1, 5e-3]
