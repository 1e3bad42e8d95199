"""Likelihoods beside the proxy's own: when the pool hears them, and that users and files do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from trainers import PRIOR, make

from sbi_jeffreys import load, save
from sbi_jeffreys.estimator import FLOW_ALONE, Pooling
from sbi_jeffreys.likelihood.stacking import Stack
from sbi_jeffreys.training import held_out, run, second_proxy
from sbi_jeffreys.training.batches import Data, ones
from sbi_jeffreys.training.held_out import best_pooling

pytestmark = pytest.mark.full_fit

X = torch.tensor([[0.1, -0.2], [0.5, 0.0]])


@pytest.fixture
def always(monkeypatch):
    """Let held-out data prefer a stack of all that were fitted, with a weight of a quarter."""

    def choose(estimator, data, device, kernel, fitted, *, from_prior):
        if not fitted:
            return Pooling(0.25, None)
        shares = torch.full((1 + len(fitted),), 1 / (1 + len(fitted)))
        return Pooling(0.25, Stack(copy.deepcopy(fitted), shares.log()))

    monkeypatch.setattr(run, "best_pooling", choose)


def simulations(num=300):
    theta = PRIOR.sample((num,))
    return theta, torch.stack((theta.sum(1).abs(), theta[:, 1]), 1) + 0.1 * torch.randn(num, 2)


def trained(**kwargs):
    torch.manual_seed(1)
    trainer = make(seed=3).append_simulations(*simulations())
    return trainer, trainer.train(**{"max_num_epochs": 2} | kwargs)


def densities(estimator):
    return estimator.log_prob(torch.zeros(3, 2, 2), X)


def test_held_out_rows_choose_between_the_proxy_and_the_stack():
    trainer, estimator = trained()
    fitted = trainer._training.fitted
    assert {network.common for network in fitted} > {estimator.likelihood.common}
    # Two epochs have not gone beyond what was fitted.
    assert estimator.stack is not None
    theta, x, _ = trainer.get_simulations()
    judges = Data(theta, x, torch.ones(len(theta), 1), trainer.val_indices)
    losses = {}
    for given in ([], fitted):
        estimator.pooling = best_pooling(estimator, judges, "cpu", ones, given)
        rows = trainer.val_indices
        losses[len(given)] = estimator.loss(theta[rows], x[rows]).mean().item()
    # Thirty rows, by other draws than those that chose: a tenth of a nat.
    assert losses[len(fitted)] < losses[0] + 0.1


def test_a_stack_is_chosen_where_it_is_right():
    _, estimator = trained()
    theta, x = simulations(500)
    right = copy.deepcopy(estimator.likelihood)
    # The proxy's own is off by two standard deviations.
    with torch.no_grad():
        estimator.likelihood.offsets[:, :2] += 2.0
    data = Data(theta, x, torch.ones(500, 1), torch.arange(500))
    assert best_pooling(estimator, data, "cpu", ones).stack is None
    found = best_pooling(estimator, data, "cpu", ones, [right])
    assert found.weight > 0
    # Other simulations and forms of the likelihood give 0.89 to 0.998 (13 of them).
    assert found.stack.log_shares.exp()[1] > 0.8
    assert found.stack.others[0] is not right


def test_counts_are_judged_by_the_same_draws_whether_there_are_others_or_not():
    torch.manual_seed(2)
    theta = PRIOR.sample((300,))
    x = torch.poisson((theta + 1).exp())
    trainer = make(seed=3).append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=2)
    data = Data(theta, x, torch.ones(300, 1), torch.arange(300))
    losses = []
    for fitted in ([], trainer._training.fitted):
        with pytest.MonkeyPatch.context() as patch:
            seen = []
            patch.setattr(
                held_out, "lowest", lambda rows, weights, seen=seen: seen.append(rows) or 0
            )
            torch.manual_seed(4)
            best_pooling(estimator, data, "cpu", ones, fitted)
        losses.append(seen[0])
    alone, both = losses
    assert len(both) == 2 * len(alone)
    assert torch.equal(both[: len(alone)], alone)


@pytest.mark.usefixtures("always")
def test_the_critic_judges_the_proxys_own_likelihood():
    _, estimator = trained()
    data = Data(*simulations(200), torch.ones(200, 1), torch.arange(200))
    rows = data.head(200, "cpu")
    critic = second_proxy._Critic(estimator.likelihood, 2, 2)
    nn.init.normal_(critic.layers[-1].weight)
    gains = []
    for stack in (estimator.stack, None):
        estimator.stack = stack
        torch.manual_seed(5)
        gains.append(second_proxy._gains(critic, estimator, rows[0], estimator.embed(rows[1])))
    assert torch.equal(*gains)


@pytest.mark.usefixtures("always")
def test_weights_of_another_stack_are_refused():
    _, estimator = trained()
    weights = estimator.state_dict()
    estimator.load_state_dict(weights)
    stack, estimator.stack = estimator.stack, None
    without = estimator.state_dict()
    with pytest.raises(RuntimeError, match=r"only one knows of likelihoods.*save and .*load"):
        estimator.load_state_dict(weights)
    estimator.load_state_dict(weights, strict=False)
    estimator.stack = stack
    with pytest.raises(RuntimeError, match=r"only one knows of likelihoods.*save and .*load"):
        estimator.load_state_dict(without)


@pytest.mark.usefixtures("always")
def test_nothing_of_it_is_trained_or_left_behind():
    trainer, estimator = trained()
    of_stack = {id(p) for p in estimator.stack.parameters()}
    # What knows the embedding belongs to the flow, and would not be moved with the stack.
    assert all("features" not in each.__dict__ for each in estimator.stack.others)
    trainer.append_simulations(*simulations(100))
    trainer.train(max_num_epochs=1, force_first_round_loss=True)
    assert not of_stack & {id(p) for p in trainer._training.average._parameters}


@pytest.mark.usefixtures("always")
def test_copies_pickles_and_files_keep_it(tmp_path):
    trainer, estimator = trained()
    expected = densities(estimator)
    stack, estimator.stack = estimator.stack, None
    assert not torch.allclose(densities(estimator), expected)
    estimator.stack = stack
    save(trainer.build_posterior(), tmp_path / "posterior")
    loaded = load(tmp_path / "posterior").posterior_estimator
    assert [each.common for each in loaded.stack.others] == [each.common for each in stack.others]
    for other in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator)), loaded):
        assert torch.equal(densities(other), expected)
    with pytest.warns(UserWarning, match="pickled"):
        unpickled = pickle.loads(pickle.dumps(trainer))
    assert len(unpickled._training.fitted) == len(trainer._training.fitted)


@pytest.mark.usefixtures("always")
def test_draws_follow_it():
    _, estimator = trained()
    drawn = estimator.sample(torch.Size((4000,)), X[:1])[:, 0]
    grid = torch.linspace(-1, 1, 201)[:-1] + 0.005
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        density = estimator.log_prob(points.unsqueeze(1), X[:1])[:, 0].exp()
    # The normaliser is known to some percent.
    assert density.sum().item() * 0.01**2 == pytest.approx(1.0, abs=0.1)
    means = (density.unsqueeze(1) * points).sum(0) / density.sum()
    # Five standard errors.
    assert torch.allclose(drawn.mean(0), means, atol=5 * drawn.std(0).max() / 4000**0.5)


@pytest.mark.usefixtures("always")
def test_a_training_goes_on_as_if_there_were_none():
    _, once = trained(max_num_epochs=4)
    parts, _ = trained(max_num_epochs=2)
    twice = parts.train(max_num_epochs=4, resume_training=True)
    assert twice.stack is not None
    expected = once.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in twice.state_dict().items())
    assert len(expected) == len(twice.state_dict())


@pytest.mark.usefixtures("always")
def test_trained_again_on_more_simulations_it_is_another():
    trainer, estimator = trained()
    before = estimator.stack
    assert before is not None
    trainer.append_simulations(*simulations(100))
    again = trainer.train(max_num_epochs=1, force_first_round_loss=True)
    assert again is estimator
    assert again.stack is not None
    assert again.stack is not before
    # For the same simulations nothing is fitted anew, and what was is heard.
    fitted = trainer._training.fitted
    again = trainer.train(max_num_epochs=1, force_first_round_loss=True)
    assert trainer._training.fitted is fitted
    assert again.stack is not None
    anew = trainer.train(max_num_epochs=1, retrain_from_scratch=True, force_first_round_loss=True)
    assert anew.stack is not None


@pytest.mark.usefixtures("always")
def test_what_fails_before_the_first_step_leaves_it(monkeypatch):
    trainer, estimator = trained()
    before = estimator.pooling

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sbi_jeffreys.training.training.Training.start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(max_num_epochs=3, resume_training=True)
    assert estimator.pooling == before


@pytest.mark.usefixtures("always")
def test_while_training_runs_there_is_none(monkeypatch):
    trainer, estimator = trained()
    seen = []
    monkeypatch.setattr(run, "run_epochs", lambda t, *a, **k: seen.append(t.estimator.pooling))
    trainer.train(max_num_epochs=3, resume_training=True)
    assert seen == [FLOW_ALONE]
    assert estimator.stack is not None


def test_without_it():
    trainer = make(seed=3).append_simulations(*simulations())
    trainer._settings |= {"stack": False}
    assert trainer.train(max_num_epochs=2).stack is None
