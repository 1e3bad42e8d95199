"""Estimators of all kinds that sbi knows, as flows of the joint estimator."""

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, Normal

from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn

# Float32: flows of a few layers, evaluated in batches of another shape.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}
PRIOR = BoxUniform(-3 * torch.ones(2), 3 * torch.ones(2))


class LinearGaussian(ConditionalDensityEstimator):
    """A user's own estimator: no embedding net, x of any shape."""

    def __init__(self, theta, x):
        net = nn.Linear(x[0].numel(), theta.shape[-1])
        super().__init__(net, theta[0].shape, x[0].shape)
        self.log_scale = nn.Parameter(torch.zeros(theta.shape[-1]))

    def _given(self, condition):
        self._check_condition_shape(condition)
        loc = self.net(condition.flatten(-len(self.condition_shape)))
        return Independent(Normal(loc, self.log_scale.exp()), 1)

    def log_prob(self, input, condition, **kwargs):
        return self._given(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return self._given(condition).sample(sample_shape)


def sbi_flow(model, **fixed):
    def builder(**kwargs):
        settings = {"hidden_features": 16, "num_transforms": 2} | fixed | kwargs
        return posterior_nn(model, **settings)

    return builder


BUILDERS = {
    "ours": lambda **kwargs: flow_nn(PRIOR, hidden_features=16, num_transforms=2, **kwargs),
    "zuko_nsf": sbi_flow("zuko_nsf"),
    "zuko_maf": sbi_flow("zuko_maf"),
    # In each of nflows' autoregressive layers one parameter does not see x: some more of them.
    "maf": sbi_flow("maf", num_transforms=5),
    "nsf": sbi_flow("nsf"),
    "mdn": sbi_flow("mdn", num_components=3),
    "made": sbi_flow("made", num_mixture_components=3),
    "custom": lambda **kwargs: LinearGaussian,
}
FLOWS = pytest.mark.parametrize("name", list(BUILDERS))
# "custom" has nowhere to put one.
EMBEDDING = pytest.mark.parametrize("name", [name for name in BUILDERS if name != "custom"])


def simulate(num=300, event=(3,)):
    """The mean of the entries of x is theta_0, up to noise."""
    theta = PRIOR.sample((num,))
    x = theta[:, 0].reshape(-1, *[1] * len(event)).expand(num, *event)
    return theta, 2 * x + 5 + 0.1 * torch.randn(num, *event)


def make(name, theta, x, **kwargs):
    flow = BUILDERS[name](**kwargs)(theta, x)
    estimator = JeffreysEstimator(
        flow, theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn("mlp", hidden_features=16)
    )
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return estimator.eval()


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
