r"""The proxy: a conditional energy-based model relative to a base density.

.. math:: \log \tilde q_\psi(\theta | x) = \log b(\theta) + f_\psi(\theta, x), \qquad
    Z_\psi(x) = \mathbb{E}_{b(\theta)}[\exp f_\psi(\theta, x)]

The base :math:`b` is the prior, so that the prior's support is the proxy's, and
:math:`f_\psi` is a log likelihood-to-evidence ratio up to a function of x. Where no prior is
given, the base is a wide Gaussian around the simulated parameters. The network is a likelihood by
default (:mod:`sbi_jeffreys.likelihood`), or one of pairs (:class:`PairMLP`).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import WALL, Base
from .embedding import evaluating
from .features.linear_posterior import LinearPosterior
from .features.regression import MOST_FEATURES
from .features.scales import spread
from .likelihood.base import Likelihood
from .likelihood.discrete import DISCRETE, DiscreteLikelihood
from .likelihood.energy import LikelihoodEnergy
from .utils.checks import check_counts
from .utils.precision import without_autocast

__all__ = [
    "EnergyProxy",
    "FromLinear",
    "PairMLP",
    "check_network",
    "proxy_builder",
    "proxy_nn",
]

ProxyBuilder = Callable[[Tensor, Tensor], nn.Module]
"""Builds the network in :math:`f_\\psi` from parameters (n, d) and embedded data (n, c).

The network takes theta of shape (S, B, d), or (S, 1, d) for parameters that all conditions share,
and embedded data (B, c); it returns shape (S, B)."""


class PairMLP(nn.Module):
    r"""Multi-layer perceptron :math:`f_\psi` on pairs of a parameter and an embedded x.

    Its first layer is a sum of one part for each, so that S parameters and B conditions cost S + B
    products there instead of S B; parameters that several conditions share (draws from the prior)
    are embedded once.

    Args:
        theta: Parameters, shape (n, d), for z-scoring.
        context: Embedded data, shape (n, c), for the number of features; none of them, c = 0, in
            density estimation.
        hidden_features: Width.
        hidden_layers: Number of layers after the first.

    Raises:
        ValueError: If the width is not positive, or the number of layers negative.

    Example:
        >>> import torch
        >>> network = PairMLP(torch.randn(100, 2), torch.randn(100, 3))
        >>> network(torch.randn(16, 1, 2), torch.randn(5, 3)).shape
        torch.Size([16, 5])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, theta: Tensor, context: Tensor, *, hidden_features: int = 64, hidden_layers: int = 2
    ) -> None:
        super().__init__()
        check_counts(1, hidden_features=hidden_features)
        check_counts(0, hidden_layers=hidden_layers)
        mean, std = theta.mean(dim=0), spread(theta)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.theta = nn.Linear(theta.shape[-1], hidden_features)
        num_context = context.shape[-1]
        self.context = nn.Linear(num_context, hidden_features, bias=False) if num_context else None
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.SiLU(), nn.Linear(hidden_features, hidden_features)]
        self.layers = nn.Sequential(*layers, nn.SiLU())
        # At zero the proxy starts as what it is built upon: normalised, for every x.
        self.last = nn.Linear(hidden_features, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return :math:`f_\\psi`.

        Args:
            theta: Shape (S, B, d), or (S, 1, d) for parameters that all conditions share.
            context: Embedded data, shape (B, c) or (S, B, c).

        Returns:
            Shape (S, B).
        """
        hidden = self.theta((theta - self.mean) / self.std)
        if self.context is None:
            # Density estimation: what all conditions share is evaluated once for all of them.
            shape = theta.shape[0], context.shape[-2]
            return self.last(self.layers(hidden)).squeeze(-1).expand(shape)
        return self.last(self.layers(hidden + self.context(context))).squeeze(-1)


def _likelihood(theta: Tensor, context: Tensor, **kwargs: Any) -> nn.Module:
    """Return a likelihood's energy where there are data, and not too many; else a network."""
    if not 0 < context.shape[1] <= MOST_FEATURES:
        return PairMLP(theta, context, **_without(kwargs, "num_components", "num_levels", "common"))
    if kwargs.get("common") == DISCRETE:
        return DiscreteLikelihood(theta, context, **_without(kwargs, "num_components", "common"))
    return LikelihoodEnergy(theta, context, **_without(kwargs, "num_levels"))


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


_NETWORKS: dict[str, Callable[..., nn.Module]] = {"likelihood": _likelihood, "mlp": PairMLP}
# What these may make.
_CLASSES = {"likelihood": (LikelihoodEnergy, DiscreteLikelihood, PairMLP), "mlp": (PairMLP,)}


def proxy_nn(model: str = "likelihood", **kwargs: Any) -> ProxyBuilder:
    """Return a builder of :math:`f_\\psi`, as sbi's ``posterior_nn`` does for estimators.

    Args:
        model: Name of the network: "likelihood" (:class:`LikelihoodEnergy`, or
            :class:`DiscreteLikelihood` with ``common=4``; without data, and for more than 500
            embedded features, "mlp" takes its place) or "mlp"
            (:class:`PairMLP`).
        kwargs: Keyword arguments of the network.

    Raises:
        TypeError: If its network takes no argument of that name.
        ValueError: If no network has that name.
    """
    if model not in _NETWORKS:
        raise ValueError(
            f"Unknown proxy {model!r}; choose one of {sorted(_NETWORKS)} or pass a "
            "function of (theta, context) that returns a module."
        )
    known = {name for of in _CLASSES[model] for name in inspect.signature(of).parameters}
    known -= {"theta", "context"}
    if unknown := sorted(kwargs.keys() - known):
        raise TypeError(f"proxy {model!r} takes no {', '.join(unknown)}: only {sorted(known)}.")
    return partial(_NETWORKS[model], **kwargs)


def proxy_builder(proxy: Any) -> ProxyBuilder:
    """Return the builder that goes by a name; a function is returned as it is.

    Raises:
        ValueError: If no network has that name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(proxy, str):
        return proxy_nn(proxy)
    if not callable(proxy) or isinstance(proxy, nn.Module):
        raise TypeError(
            f"proxy must be a name or a function of (theta, context) that builds a module, got "
            f"{type(proxy).__name__}."
        )
    return proxy


def check_network(network: nn.Module, theta: Tensor, context: Tensor) -> None:
    """Refuse an energy network of a user's that cannot be trained.

    Args:
        network: What the builder has returned.
        theta: Some parameters, shape (n, d).
        context: Embedded data that go with them, shape (n, c).

    Raises:
        ValueError: If it has no parameters; for theta of shape (S, B, d) or (S, 1, d) and embedded
            data (B, c) does not return shape (S, B); or says NaN everywhere.
    """
    name = f"The proxy, {type(network).__name__},"
    if next(network.parameters(), None) is None:
        raise ValueError(f"{name} has no parameters: there is nothing to train.")
    rows = torch.arange(6) % len(theta)
    theta, context = theta[rows].unflatten(0, (3, 2)), context[rows[:2]]
    with torch.no_grad(), evaluating(network):
        for given in (theta, theta[:, :1]):
            found = network(given, context)
            if found.shape != (3, 2):
                raise ValueError(
                    f"{name} must return energies of shape (S, B) for theta of shape (S, B, d) or "
                    f"(S, 1, d) and embedded x of shape (B, c), but returned shape "
                    f"{tuple(found.shape)} for {tuple(given.shape)} and {tuple(context.shape)}."
                )
            if found.isnan().all():
                raise ValueError(f"{name} says NaN before it was trained: look at its forward().")


class FromLinear(nn.Module):
    r"""A network on top of the linear posterior's log ratio to the base.

    The proxy then starts as a normalised density that is often near to the posterior, instead of
    as the prior, and the flow is not pulled away from a good start until the proxy has caught up.

    Args:
        network: Module of (theta, embedded x).
        linear: The linear posterior.
        base: Base density.
    """

    def __init__(self, network: nn.Module, linear: LinearPosterior, base: Base) -> None:
        super().__init__()
        self.network = network
        self.linear = linear
        self.base = base

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return :math:`f_\\psi`, shape (S, B), for theta (S, B, d) and embedded x (B, c)."""
        start = self.linear.log_prob(theta, context) - self.base.log_prob_soft(theta)
        # A regression must not decide what lies far out: the network can overrule this much.
        return self.network(theta, context) + start.clamp_min(-WALL)


class EnergyProxy(nn.Module):
    """The proxy as a model of its own: energy network, base and the embedding it shares.

    Args:
        network: :math:`f_\\psi`, a module of (theta, embedded x).
        base: Base density.
        embed: Embeds x of shape (B, *event) to (B, c). It belongs to the flow, whose parameters
            it is counted among.
    """

    def __init__(self, network: nn.Module, base: Base, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.base = base
        # Not a submodule: shared weights have one owner and one entry in the state_dict.
        self.__dict__["embed"] = embed

    @property
    def likelihood(self) -> Likelihood | None:
        """The network if it is a likelihood: one that can be evaluated as such, and simulates."""
        return self.network if isinstance(self.network, Likelihood) else None

    @without_autocast()
    def log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`f_\psi(\theta, x)`.

        Args:
            theta: Shape (S, B, d), (B, d) or (S, 1, d).
            x: Shape (B, *event).

        Returns:
            Nats, shape (S, B), with S = 1 where theta has no such dimension.

        Raises:
            ValueError: If shapes do not fit.
        """
        context = self.__dict__["embed"](x)
        if theta.dim() not in (2, 3) or theta.shape[-2] not in (1, len(context)):
            raise ValueError(
                f"theta must be of shape (S, B, d), (B, d) or (S, 1, d) for the {len(context)} x, "
                f"got {tuple(theta.shape)}."
            )
        theta = theta.unsqueeze(0) if theta.dim() == 2 else theta
        return self.network(theta.to(context), context)

    @without_autocast()
    def log_prob_unnormalized(self, theta: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`\log \tilde q_\psi(\theta | x)`, minus infinity outside of the support.

        Args:
            theta: Shape (S, B, d), (B, d) or (S, 1, d).
            x: Shape (B, *event).

        Returns:
            Nats, shape (S, B), with S = 1 where theta has no such dimension.
        """
        log_ratio = self.log_ratio(theta, x)
        return self.base.log_prob(theta.to(log_ratio)) + log_ratio
