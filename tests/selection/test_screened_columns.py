"""What becomes of a flow, and of all that comes after it, that sees some columns of x only."""

import pytest
import torch
from noise import NOISE, among_noise
from torch import randn
from torch.distributions import Independent, Normal

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.features.columns import Features
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.selection import seen
from sbi_jeffreys.selection.screening import Columns
from sbi_jeffreys.utils.quiet import QuietTracker

PRIOR = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)


def trained(x_of, objective="dual", **kwargs):
    theta = PRIOR.sample((300,))
    trainer = JeffreysNPE(
        PRIOR,
        seed=0,
        show_progress_bars=False,
        tracker=QuietTracker(),
        objective=objective,
        **kwargs,
    )
    estimator = trainer.append_simulations(theta, x_of(theta)).train(max_num_epochs=2)
    return trainer, estimator


def observed(theta):
    return among_noise(theta, theta + 0.1 * randn(len(theta), 3))[1]


@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_flow_and_proxy_see_what_is_kept_only(objective):
    _, estimator = trained(observed, objective)
    x = observed(torch.zeros(4, 3))
    other = torch.cat((x[:, :3], 100 * randn(4, NOISE)), dim=1)
    assert estimator.embed(x).shape == (4, 3)
    theta = 0.1 * randn(5, 4, 3)
    assert torch.equal(estimator.log_prob(theta, x), estimator.log_prob(theta, other))
    if estimator.proxy is not None:
        assert torch.equal(
            estimator.proxy.log_ratio(theta, x), estimator.proxy.log_ratio(theta, other)
        )
    # What is kept does matter.
    x[:, 0] += 0.5
    assert not torch.equal(estimator.log_prob(theta, x), estimator.log_prob(theta, other))


def test_columns_can_be_named():
    theta = PRIOR.sample((100,))
    x = observed(theta)
    flow = flow_nn(PRIOR, columns=[2, 0])(theta, x)
    first, features = flow.embedding_net[:2]
    assert isinstance(first, Columns)
    assert isinstance(features, Features)
    assert torch.equal(first(x), x[:, [2, 0]])
    every = flow_nn(PRIOR, columns=range(x.shape[1]))(theta, x)
    assert isinstance(every.embedding_net[0], Features)


@pytest.mark.parametrize("columns", [[], [0, 0], [-1], [3], [[0, 1]], [0.5], "ab", 2])
def test_columns_that_x_has_not_are_refused(columns):
    with pytest.raises(ValueError, match=r"columns must be different numbers .* shape \(3,\)"):
        flow_nn(PRIOR, columns=columns)(randn(50, 3), randn(50, 3))


def test_columns_of_images_and_beside_an_embedding_net_are_refused():
    with pytest.raises(ValueError, match=r"columns must be .* shape \(3, 4\)"):
        flow_nn(PRIOR, columns=[0])(randn(50, 3), randn(50, 3, 4))
    with pytest.raises(ValueError, match="leave one of the two out"):
        flow_nn(PRIOR, columns=[0], embedding_net=torch.nn.Identity())


def test_counts_keep_their_steps_behind_the_columns():
    """Of the columns kept the steps of counts are the proxy's, whose order is another than x's."""
    rates = (1.0 + PRIOR.sample((400,)).abs()).clamp_max(3.0)
    x = torch.cat((randn(400, NOISE), torch.poisson(5 * rates)), dim=1)
    trainer = JeffreysNPE(PRIOR, seed=0, show_progress_bars=False, tracker=QuietTracker())
    estimator = trainer.append_simulations(rates, x).train(max_num_epochs=1)
    kept = estimator.flow.embedding_net[0].kept.tolist()
    network = estimator.proxy.network
    assert kept[-3:] == [NOISE, NOISE + 1, NOISE + 2]
    assert (network.gaps[-3:] > 0).all()
    assert not (network.gaps[:-3] > 0).any()


def test_a_posterior_that_sees_some_columns_is_saved(tmp_path):
    trainer, _ = trained(observed)
    posterior = trainer.build_posterior()
    save(posterior, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior").posterior_estimator
    x, theta = observed(torch.zeros(4, 3)), randn(5, 4, 3)
    assert loaded.columns_seen == [0, 1, 2]
    assert torch.equal(loaded.log_prob(theta, x), posterior.posterior_estimator.log_prob(theta, x))


def test_a_posterior_that_sees_all_of_many_columns_is_saved(tmp_path, monkeypatch):
    """What is built anew on dummy data must not look for columns there."""
    monkeypatch.setattr(seen, "components_of", lambda theta, x, num: None)
    trainer, estimator = trained(lambda theta: theta @ torch.ones(3, 40) + randn(len(theta), 40))
    assert estimator.embed(torch.zeros(1, 40)).shape == (1, 40)
    monkeypatch.undo()
    save(trainer.build_posterior(), tmp_path / "posterior")
    loaded = load(tmp_path / "posterior").posterior_estimator
    x, theta = randn(4, 40), randn(5, 4, 3)
    assert torch.equal(loaded.log_prob(theta, x), estimator.log_prob(theta, x))


def test_later_rounds_look_at_the_columns_of_the_first():
    trainer, estimator = trained(observed)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(1, 3 + NOISE))
    theta = proposal.sample((100,), show_progress_bars=False)
    trainer.append_simulations(theta, observed(theta), proposal=proposal)
    estimator = trainer.train(max_num_epochs=4)
    assert estimator.columns_seen == [0, 1, 2]


def test_columns_that_only_later_simulations_tell_of_are_warned_of():
    prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    theta, noise = randn(600, 2), randn(600, 6)
    x = torch.cat((theta[:, :1] + 0.1 * noise[:, :1], noise[:, 1:]), dim=1)
    trainer = JeffreysNPE(
        prior, objective="ml", seed=0, show_progress_bars=False, tracker=QuietTracker()
    )
    options = {"max_num_epochs": 1, "force_first_round_loss": True}
    trainer.append_simulations(theta[:300], x[:300]).train(**options)
    (columns,) = (m for m in trainer._neural_net.modules() if isinstance(m, Columns))
    assert 3 not in columns.kept
    x[:, 3] = theta[:, 1] + 0.1 * noise[:, 3]
    trainer.append_simulations(theta[300:], x[300:])
    said = r"Columns \[3\] .*retrain_from_scratch=True, force_first_round_loss=True\)"
    with pytest.warns(UserWarning, match=said):
        trainer.train(**options)
    # Once, and not where nothing has come to light since.
    trainer.train(**options)
    trainer.train(retrain_from_scratch=True, **options)
    (columns,) = (m for m in trainer._neural_net.modules() if isinstance(m, Columns))
    assert 3 in columns.kept
