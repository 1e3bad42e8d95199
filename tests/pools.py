"""A Gaussian flow with a Gaussian proxy, whose pool is known, and other small ones."""

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.training.batches import Data

__all__ = [
    "FLOW",
    "PRIOR",
    "PROXY",
    "Constant",
    "GaussianEnergy",
    "default",
    "gaussians",
    "pooled",
    "simulations",
]

PRIOR = Independent(Normal(torch.zeros(2), 5 * torch.ones(2)), 1)
# The flow's scale, and the proxy's: near enough for the bounds to be off.
FLOW, PROXY = 1.0, 0.8


class GaussianFlow(ConditionalDensityEstimator):
    """N(theta; x, s^2)."""

    def __init__(self, scale: float) -> None:
        super().__init__(nn.Identity(), torch.Size((2,)), torch.Size((2,)))
        self.scale = nn.Parameter(torch.tensor(scale))

    def _given(self, x: Tensor) -> Independent:
        return Independent(Normal(x, self.scale.expand_as(x)), 1)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: object) -> Tensor:
        return self._given(condition).log_prob(input)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: object) -> Tensor:
        return -self.log_prob(input, condition)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs: object) -> Tensor:
        return self._given(condition).sample(sample_shape)


class GaussianEnergy(nn.Module):
    """log N(theta; x + shift, s^2) relative to the base, and 2 nats more than it should be."""

    def __init__(self, base: Base, shift: float, scale: float) -> None:
        super().__init__()
        self.base, self.shift, self.scale = base, shift, scale

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        normal = Normal(context + self.shift, self.scale)
        return normal.log_prob(theta).sum(-1) - self.base.log_prob_soft(theta) + 2.0


def gaussians(weight: float, shift: float = 0.2, scale: float = PROXY) -> JeffreysEstimator:
    """Return a Gaussian flow with a Gaussian proxy; what they see of x is x."""
    theta = PRIOR.sample((10,))
    base = Base(PRIOR, theta)
    estimator = JeffreysEstimator(
        GaussianFlow(FLOW),
        theta,
        theta,
        base=base,
        build_proxy=lambda theta, context: nn.Identity(),
    )
    estimator.proxy.network = GaussianEnergy(base, shift, scale)
    estimator._x_mean.zero_()
    estimator._x_std.fill_(1.0)
    estimator.weight = weight
    return estimator.eval()


def default(weight: float) -> JeffreysEstimator:
    """Return the default flow and proxy, untrained, of Gaussian simulations."""
    theta = PRIOR.sample((200,))
    x = theta + torch.randn(200, 2)
    estimator = JeffreysEstimator(
        flow_nn(PRIOR)(theta, x), theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn()
    )
    estimator.weight = weight
    return estimator.eval()


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        return theta.new_full((len(theta), len(context)), self.value)


def simulations(num: int, scale: float) -> Data:
    """Return x, and theta that is N(x, scale^2) given x."""
    x = PRIOR.sample((num,))
    theta = x + scale * torch.randn(num, 2)
    return Data(theta, x, torch.ones(num, 1), torch.arange(num))


def pooled(weight: float, shift: float = 0.2, scale: float = PROXY) -> tuple[float, float]:
    """Return mean relative to x and scale of the pool of the two: precisions add up."""
    of_flow, of_proxy = (1 - weight) / FLOW**2, weight / scale**2
    return shift * of_proxy / (of_flow + of_proxy), (of_flow + of_proxy) ** -0.5
