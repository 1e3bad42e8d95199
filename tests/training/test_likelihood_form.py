"""When the likelihood's form is chosen in a training, and what of it stays."""

import math

import pytest
import torch
from torch import nn
from trainers import PRIOR, make

import sbi_jeffreys
from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.discrete import DISCRETE
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training import joint_trainer, likelihood_form
from sbi_jeffreys.training.likelihood_form import take_fittest_form

pytestmark = pytest.mark.full_fit


def crescents(n):
    theta = PRIOR.sample((n,))
    angle = math.pi * (torch.rand(n) - 0.5)
    noise = 0.1 * torch.stack((angle.cos(), angle.sin()), 1)
    return theta, torch.stack((theta.sum(1).abs(), theta[:, 1]), 1) + noise


@pytest.fixture
def data():
    torch.manual_seed(1)
    return crescents(400)


def train(made, data, **kwargs):
    return made.append_simulations(*data).train(**{"max_num_epochs": 2} | kwargs)


def test_noise_around_a_mean(data, tmp_path):
    made = make(seed=3)
    estimator = train(made, data)
    form = estimator.proxy.network.common
    assert form > 0
    sbi_jeffreys.save(estimator, tmp_path / "estimator")
    loaded = sbi_jeffreys.load(tmp_path / "estimator")
    assert loaded.proxy.network.common == form
    theta, x = data[0][:5], data[1][:5]
    expected = estimator.proxy.log_prob_unnormalized(theta, x)
    assert torch.equal(loaded.proxy.log_prob_unnormalized(theta, x), expected)


def test_it_is_chosen_once(data, monkeypatch):
    calls = []

    def choose(estimator, *args, **kwargs):
        calls.append(estimator)
        return []

    monkeypatch.setattr(joint_trainer, "take_fittest_form", choose)
    made = make()
    train(made, data, max_num_epochs=1)
    made.train(max_num_epochs=2, resume_training=True)
    again = {"max_num_epochs": 1, "force_first_round_loss": True}
    made.train(**again)
    assert len(calls) == 1
    made.train(**again, retrain_from_scratch=True)
    assert len(calls) == 2
    assert calls[0] is not calls[1]


def test_held_out_rows_have_not_been_fitted_to(data):
    """All rows were, while others were held out."""
    made = make()
    train(made, data, max_num_epochs=1, validation_data=crescents(50))
    fitted = made._fitted
    made.train(max_num_epochs=1, force_first_round_loss=True)
    assert made._fitted is not fitted
    assert not torch.isin(made.val_indices, made._fitted.train).any()


def test_what_was_trained_with_a_kernel_goes_on(data):
    """No form was fitted, and none takes the place of what has been trained on the same rows."""
    made = make()
    network = train(made, data, calibration_kernel=lambda x: torch.ones(len(x))).proxy.network
    estimator = made.train(max_num_epochs=1, force_first_round_loss=True)
    assert estimator.proxy.network is network


@pytest.mark.parametrize(
    ("made", "trained"),
    [
        ({"proxy": "mlp"}, {}),
        ({"proxy": proxy_nn("likelihood")}, {}),
        ({"objective": "ml"}, {}),
        ({}, {"calibration_kernel": lambda x: torch.ones(len(x))}),
        ({"density_estimator": flow_nn(PRIOR, embedding_net=nn.Linear(2, 2))}, {}),
    ],
    ids=["mlp", "builder", "ml", "kernel", "learnt embedding"],
)
def test_no_form_is_chosen(made, trained, data, monkeypatch):
    def refuse(*args):
        raise AssertionError("a form")

    monkeypatch.setattr(joint_trainer, "take_fittest_form", refuse)
    train(make(**made), data, max_num_epochs=1, **trained)


def test_through_loaders_of_torch(data):
    kwargs = {"dataloader_kwargs": {"num_workers": 0}}
    estimator = train(make(seed=3), data, **kwargs)
    assert estimator.proxy.network.common > 0


def test_held_out_rows_of_the_user_judge(data, monkeypatch):
    torch.manual_seed(2)
    held_out = crescents(100)
    seen = []
    monkeypatch.setattr(
        joint_trainer, "take_fittest_form", lambda *args, **kwargs: seen.append(args[1:]) or []
    )
    train(make(seed=3), data, validation_data=held_out)
    ((rows, judges),) = seen
    assert len(rows[0]) == len(data[0])
    # In another order.
    for found, given in zip(judges, held_out, strict=True):
        assert torch.equal(found.sort(dim=0).values, given.sort(dim=0).values)


def interrupted(made, monkeypatch, **kwargs):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(likelihood_form, "fittest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.train(**kwargs)


def test_after_an_interruption_a_form_is_still_chosen(data, monkeypatch):
    made = make(seed=3).append_simulations(*data)
    interrupted(made, monkeypatch)
    assert made.train(max_num_epochs=2).proxy.network.common > 0


def test_an_interrupted_retraining_leaves_what_was_trained(data, monkeypatch):
    made = make(seed=None)
    estimator = train(made, data)
    rows, few = made.train_indices, (data[0][None, :5], data[1][:5])
    weights = estimator.state_dict()
    kept = {name: value.clone() for name, value in weights.items()}
    interrupted(made, monkeypatch, retrain_from_scratch=True, force_first_round_loss=True)
    assert made._neural_net is made._training.estimator is estimator
    posterior = made.build_posterior().posterior_estimator
    assert torch.equal(posterior.flow.log_prob(*few), estimator.flow.log_prob(*few))
    assert all(torch.equal(value, kept[name]) for name, value in estimator.state_dict().items())
    assert torch.equal(made.train_indices, rows)
    assert made.train(max_num_epochs=3, resume_training=True) is estimator


def counts(n):
    """Three counts, one with zeros in excess, and a bit."""
    theta = PRIOR.sample((n,))
    rates = (1 + theta[:, [0, 0, 1]]).exp()
    zeros = torch.rand(n, 1) < torch.tensor([0.0, 0.5, 0.0])
    bit = torch.bernoulli(torch.sigmoid(2 * theta[:, 1:]))
    return theta, torch.cat((torch.poisson(rates) * ~zeros, bit), dim=1)


def test_small_counts_are_taken_for_levels(tmp_path):
    torch.manual_seed(2)
    theta, x = counts(400)
    made = [make(seed=3, density_estimator="coupling_nsf") for _ in range(2)]
    first, second = (train(each, (theta, x)) for each in made)
    assert first.likelihood.common == DISCRETE
    # The same seed, the same weights; and it goes on.
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    longer = made[0].train(max_num_epochs=4, resume_training=True)
    assert longer.likelihood.common == DISCRETE
    assert made[0].epoch > made[1].epoch
    posterior = made[0].build_posterior()
    assert posterior.sample((20,), x=x[0], show_progress_bars=False).shape == (20, 2)
    sbi_jeffreys.save(posterior, tmp_path / "posterior")
    loaded = sbi_jeffreys.load(tmp_path / "posterior").posterior_estimator
    assert loaded.likelihood.common == DISCRETE
    expected = longer.proxy.log_prob_unnormalized(theta[:5], x[:5])
    assert torch.equal(loaded.proxy.log_prob_unnormalized(theta[:5], x[:5]), expected)


def test_rare_levels_are_known():
    """Those of all rows of the fit: in the first thousand, which tell scales, some are missing."""
    torch.manual_seed(2)
    theta, x = counts(1500)
    rows = x[:, 2].argsort()
    theta, x = theta[rows], x[rows]
    flow = flow_nn(PRIOR, columns=range(4))(theta, x)
    base = Base(PRIOR, theta)
    estimator = JeffreysEstimator(flow, theta, x, base=base, build_proxy=proxy_nn())
    take_fittest_form(estimator, (theta, x), counts(200))
    assert estimator.likelihood.common == DISCRETE
    levels = estimator.embed(x)[:, 2].unique()
    known = estimator.likelihood.values[2].unique()
    assert len(levels) > len(estimator.embed(x[:1000])[:, 2].unique())
    torch.testing.assert_close(known, levels)


def test_levels_are_not_tried_if_told_so():
    torch.manual_seed(2)
    made = make(seed=3, density_estimator="coupling_nsf")
    made._settings |= {"levels": False}
    assert train(made, counts(400)).likelihood.common < DISCRETE


def test_units_bend_alike_if_told_so(data):
    torch.manual_seed(2)
    for sharpness in (True, False):
        made = make(seed=3)
        made._settings |= {"sharpness": sharpness}
        estimator = train(made, data, max_num_epochs=1)
        learnt = estimator.likelihood.of_theta.sharpness.detach().abs().max()
        assert (learnt > 0) == sharpness
