"""What users ask of torch around a training, or a posterior, leaves densities as they are."""

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.density import JeffreysDensity
from sbi_jeffreys.diagnostics import diagnose_proxy

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
AUTOCAST = torch.autocast("cpu", torch.bfloat16)
pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


def train(**kwargs):
    torch.manual_seed(1)
    theta = PRIOR.sample((200,))
    x = theta + 0.1 * torch.randn(200, 2)
    trainer = JeffreysNPE(PRIOR, seed=0, show_progress_bars=False, **kwargs)
    estimator = trainer.append_simulations(theta, x).train(max_num_epochs=3)
    return trainer, estimator


@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_training_under_autocast_gives_the_same_weights(objective):
    _, usual = train(objective=objective)
    with AUTOCAST:
        _, other = train(objective=objective)
    states = zip(usual.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)


def test_posteriors_under_autocast_are_the_same():
    trainer, estimator = train()
    assert estimator.weight > 0
    posterior, theta, x = trainer.build_posterior(), PRIOR.sample((20,)), torch.zeros(2)

    def look():
        torch.manual_seed(2)
        samples = posterior.sample((50,), x=x, show_progress_bars=False)
        losses = estimator.loss(theta, theta)
        log_z = diagnose_proxy(estimator, theta, theta, num_draws=8).log_partition
        with torch.no_grad():
            ratio = estimator.proxy.log_ratio(theta, theta)
            density = estimator.proxy.log_prob_unnormalized(theta, theta)
        far = estimator.beyond_reach(5 * theta)
        densities = posterior.log_prob(theta, x=x), ratio, density
        return samples, *densities, losses.detach(), log_z, far

    usual = look()
    with AUTOCAST:
        other = look()
        # It is on for all else.
        assert torch.nn.Linear(2, 2)(x).dtype == torch.bfloat16
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(usual, other, strict=True))


def test_densities_under_autocast_are_the_same():
    samples = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))

    def look():
        density = JeffreysDensity(seed=0).fit(samples, max_num_epochs=1)
        torch.manual_seed(2)
        log_z = torch.tensor(density.log_partition)
        densities = density.log_prob(samples), density.proxy_log_prob(samples)
        return *densities, density.sample(5), log_z

    usual = look()
    with AUTOCAST:
        other = look()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(usual, other, strict=True))
