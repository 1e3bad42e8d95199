"""A training with its simulations, for tests of steps and of what follows from held-out data."""

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_jeffreys.base import Base
from sbi_jeffreys.draws import Draws
from sbi_jeffreys.duals import weighting
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training.batches import Data, ones
from sbi_jeffreys.training.steps import Settings
from sbi_jeffreys.training.training import Training

__all__ = ["DRAWS", "PRIOR", "as_data", "equal", "make", "simulate", "simulate_bent", "snapshot"]

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
DRAWS = Draws()


def simulate(num):
    theta = PRIOR.sample((num,))
    return theta, theta + 0.2 * torch.randn(num, 2)


def simulate_bent(num):
    """Simulations that no linear regression can explain: more is left to learn."""
    theta = PRIOR.sample((num,))
    bent = torch.stack((theta[:, 0], theta[:, 1] + 2 * theta[:, 0].square()), dim=1)
    return theta, bent + 0.1 * torch.randn(num, 2)


def as_data(theta, x):
    return Data(theta, x, torch.ones(len(theta), 1), torch.arange(len(theta)))


def make(
    num=50, weights="dual", flow="ours", kernel=ones, forward_loss=None, simulator=simulate,
    proxy="mlp", common=0, draws=DRAWS, from_prior=True, **settings,
):  # fmt: skip
    """A training with its simulations and as many held-out ones."""
    theta, x = simulator(num)
    if flow == "ours":
        build = flow_nn(PRIOR, hidden_features=24, num_transforms=2)
    else:
        build = posterior_nn(flow, hidden_features=16, num_transforms=2)
    base = None if weights == "ml" else Base(PRIOR, theta)
    form = {"common": common} if common else {}
    build_proxy = proxy_nn(proxy, hidden_features=24, **form)
    estimator = JeffreysEstimator(build(theta, x), theta, x, base=base, build_proxy=build_proxy)
    settings = Settings(**({"training_batch_size": 10, "learning_rate": 5e-3} | settings))
    weights = weighting(weights)
    training = Training(estimator, weights, draws, settings, kernel, forward_loss, from_prior)
    return training, as_data(theta, x), as_data(*simulator(num))


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())
