r"""The base density that the proxy is relative to: the prior, or what stands in its place."""

import copy
from typing import Any

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from .features.scales import spread
from .inputs.priors import draw, draw_on_gpu, log_prob, moved, proper

__all__ = ["WALL", "Base"]

# Parameters among which one with a density is looked for, and how often others are drawn.
_ROWS, _TRIES = 100, 3
WALL = 10.0
"""Nats by which the soft base falls, outside of its support, below its density at a typical
parameter: enough to push a flow back, not so much that one leaked sample outweighs a batch. Farther
out than parameters are from their mean it falls on, like a Gaussian: of a level that never ends a
flow that leaks would find more than of the support, and stay there."""


class Base:
    """Base density :math:`b` of the proxy: the prior, or a wide Gaussian in its place.

    Args:
        prior: Prior distribution; ``None`` and sbi's ``ImproperEmpirical`` (which stands for no
            prior and cannot be sampled) are replaced by a Gaussian of twice the scale of theta.
        theta: Parameters of the training simulations, shape (n, d).

    Attributes:
        units: Their means and standard deviations, shape (2, d), in which what lies outside of the
            support is measured.
    """

    def __init__(self, prior: Distribution | None, theta: Tensor) -> None:
        prior = proper(prior)
        if prior is None:
            normal = Normal(theta.mean(dim=0), 2 * spread(theta))
            prior = Independent(normal, 1, validate_args=False)
        self.distribution: Distribution = prior
        some = self._with_density(theta[within_support(prior, theta)][:_ROWS])
        self.anchor = some[:1]
        self.floor = prior.log_prob(some).median() - WALL
        scale = spread(theta) if len(theta) > 1 else torch.ones_like(theta[0])
        self.units = torch.stack((theta.mean(dim=0), scale))

    def _with_density(self, theta: Tensor) -> Tensor:
        """Return those of these parameters (n, d), or else of the prior's, that have a density.

        Bounds may be in the support and have none, or an infinite one.
        """
        for _ in range(_TRIES):
            if len(theta):
                has = self.distribution.log_prob(theta).isfinite()
                if bool(has.any()):
                    return theta[has]
            theta = draw(self.distribution, _ROWS)
        return theta[:1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Base":
        """Return a copy that shares the prior: it is the user's, and some cannot be copied."""
        other = copy.copy(self)
        for name in ("anchor", "floor", "units"):
            setattr(other, name, getattr(self, name).clone())
        return other

    def to(self, device: torch.device | str) -> "Base":
        """Move the base to a device."""
        if torch.device(device) != self.anchor.device:
            self.distribution = moved(self.distribution, device)
        for name in ("anchor", "floor", "units"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def sample(self, num: int) -> Tensor:
        """Return draws of shape (num, d)."""
        on_cpu = self.anchor.device.type == "cpu"
        return (draw if on_cpu else draw_on_gpu)(self.distribution, num)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return :math:`\\log b`, shape (*,) for theta (*, d); minus infinity outside."""
        return self._log_prob(theta, torch.full_like(self.floor, -torch.inf))

    def log_prob_soft(self, theta: Tensor) -> Tensor:
        """Return :math:`\\log b`, with a finite floor in place of minus infinity, and its slope."""
        center, scale = self.units
        # The squared distance of a parameter from the mean is d in the mean.
        far = ((theta - center) / scale).square().sum(dim=-1) - theta.shape[-1]
        return self._log_prob(theta, (self.floor - 0.5 * far.clamp_min(0.0)).flatten())

    def _log_prob(self, theta: Tensor, outside: Tensor) -> Tensor:
        # Some of sbi's distributions take (n, d) only.
        flat = theta.reshape(-1, theta.shape[-1])
        inside = within_support(self.distribution, flat)
        # Distributions that validate their arguments refuse what lies outside.
        flat = torch.where(inside.unsqueeze(-1), flat, self.anchor[0])
        found = log_prob(self.distribution, flat)
        # torch counts the upper bound of a uniform to its support, but gives it no density.
        found = torch.where(inside & (found > -torch.inf), found, outside)
        return found.reshape(theta.shape[:-1])
