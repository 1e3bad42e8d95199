"""The pool in training: when it has a weight, and that users, copies and files get it."""

import copy
import pickle

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.estimator import Pooling
from sbi_jeffreys.training import run
from sbi_jeffreys.training.batches import Data, ones
from sbi_jeffreys.training.held_out import best_pooling
from sbi_jeffreys.training.training import Training


@pytest.fixture
def a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let held-out data say a quarter."""
    monkeypatch.setattr(run, "best_pooling", lambda *args, **kwargs: Pooling(0.25, None))


def _trainer(**kwargs: object) -> JeffreysNPE:
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((300,))
    x = theta + 0.2 * torch.randn(300, 2)
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, **kwargs)
    return trainer.append_simulations(theta, x)


def test_training_ends_with_the_weight_that_held_out_data_choose():
    trainer = _trainer()
    estimator = trainer.train(max_num_epochs=20)
    theta, x, _ = trainer.get_simulations()
    rows = Data(theta, x, torch.ones(300, 1), trainer.val_indices)
    # The trainer's own draws are others; within one step of the grid.
    assert abs(best_pooling(estimator, rows, "cpu", ones).weight - estimator.weight) <= 0.125
    assert trainer.summary["pool_weight"] == [estimator.weight]


@pytest.mark.usefixtures("a_quarter")
def test_the_pool_is_what_users_get():
    trainer = _trainer()
    estimator = trainer.train(max_num_epochs=20)
    posterior = trainer.build_posterior()
    x = torch.zeros(1, 2)
    theta = posterior.sample((500,), x=x, show_progress_bars=False)
    given = estimator.log_prob(theta.unsqueeze(1), x)[:, 0]
    assert torch.allclose(posterior.log_prob(theta, x=x, norm_posterior=False), given)
    assert not torch.allclose(given, estimator.flow.log_prob(theta.unsqueeze(1), x)[:, 0])


def test_maximum_likelihood_has_no_pool():
    trainer = _trainer(objective="ml")
    assert trainer.train(max_num_epochs=2).weight == 0.0


@pytest.mark.usefixtures("a_quarter")
@pytest.mark.parametrize(("proxy", "weight"), [("likelihood", 0.25), ("mlp", 0.0)])
def test_later_rounds_train_and_pool_a_likelihood(proxy, weight):
    trainer = _trainer(proxy=proxy)
    trainer.train(max_num_epochs=10)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    theta = proposal.sample((200,), show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.2 * torch.randn(200, 2), proposal=proposal)
    assert trainer.train(max_num_epochs=2).weight == weight
    # What was built before keeps its own.
    assert proposal.posterior_estimator.weight == 0.25


@pytest.mark.usefixtures("a_quarter")
def test_a_training_that_is_stopped_has_a_weight_and_one_that_never_began_keeps_it(monkeypatch):
    trainer = _trainer()
    trainer.train(max_num_epochs=2)
    monkeypatch.setattr(run, "run_epochs", lambda *args, **kwargs: _raise(KeyboardInterrupt()))
    trainer._neural_net.weight = 0.5
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_training=True)
    assert trainer._neural_net.weight == 0.25
    monkeypatch.setattr(Training, "start", lambda *args: _raise(ValueError("no")))
    trainer._neural_net.weight = 0.5
    with pytest.raises(ValueError, match="no"):
        trainer.train(resume_training=True)
    assert trainer._neural_net.weight == 0.5
    assert len(trainer.summary["pool_weight"]) == len(trainer.summary["epochs_trained"])


def _raise(error: BaseException) -> None:
    raise error


def test_to_stop_and_resume_trains_the_same_flow():
    whole, parts = _trainer(), _trainer()
    parts._theta_roundwise, parts._x_roundwise = whole._theta_roundwise, whole._x_roundwise
    once = whole.train(max_num_epochs=6)
    parts.train(max_num_epochs=3)
    twice = parts.train(max_num_epochs=6, resume_training=True)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name
    assert once.weight == twice.weight


def test_copies_and_files_keep_the_weight(tmp_path):
    trainer = _trainer()
    estimator = trainer.train(max_num_epochs=10)
    estimator.weight = 0.25
    posterior = trainer.build_posterior(estimator)
    theta, x = torch.zeros(1, 4, 2), 0.1 * torch.randn(4, 2)
    expected = estimator.log_prob(theta, x)
    save(posterior, tmp_path / "posterior.safetensors")
    loaded = load(tmp_path / "posterior.safetensors").posterior_estimator
    for other in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator)), loaded):
        assert other.weight == 0.25
        assert torch.equal(other.log_prob(theta, x), expected)


@pytest.mark.usefixtures("a_quarter")
def test_markov_chains_sample_the_pool():
    trainer = _trainer()
    estimator = trainer.train(max_num_epochs=10)
    chains = MCMCPosteriorParameters(num_chains=20, warmup_steps=20, thin=2)
    by_chain = trainer.build_posterior(sample_with="mcmc", posterior_parameters=chains)
    x = torch.tensor([[0.2, -0.1]])
    found = by_chain.sample((1000,), x=x, show_progress_bars=False)
    drawn = estimator.sample(torch.Size((4000,)), x)[:, 0]
    # Chains of fifty steps each, thinned: some 300 draws. Five standard errors of a mean.
    assert torch.allclose(found.mean(0), drawn.mean(0), atol=5 * drawn.std(0).max() / 300**0.5)


def test_while_training_runs_the_density_is_the_flows(a_quarter, monkeypatch):
    trainer, seen = _trainer(), []
    assert trainer.train(max_num_epochs=1).weight == 0.25
    monkeypatch.setattr(
        run,
        "run_epochs",
        lambda t, *args, **kwargs: seen.append(t.estimator.weight),
    )
    trainer.train(resume_training=True, max_num_epochs=2)
    assert seen == [0.0]
