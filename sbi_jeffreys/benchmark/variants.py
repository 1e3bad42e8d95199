"""Variants of the method, and methods beside it, that :mod:`sbi_jeffreys.bench_method` compares.

Each is a function of the prior that returns a class to train, its arguments and those of ``train``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import CNNEmbedding, FCEmbedding
from sbi.neural_nets.net_builders.flow import build_zuko_nsf
from torch import nn
from torch.distributions import Distribution

from ..costs import HuberCost, LinearCost
from ..draws import Draws
from ..duals import FixedWeights, ResilientDual, weighting
from ..flows import NUM_BINS, flow_nn
from ..layers.conditional_gaussian import ConditionalGaussian
from ..objective import Limits
from ..proxy import proxy_nn
from ..trainer import JeffreysNPE

__all__ = ["VARIANTS"]

_DATA = LinearCost()


def _jeffreys(train: dict[str, Any] | None = None, **kwargs: Any) -> Callable:
    return lambda prior: (JeffreysNPE, kwargs, train or {})


def _all_columns(prior: Distribution) -> tuple:
    """Return the default without a look at which columns of x say something of theta."""

    def build(theta: torch.Tensor, x: torch.Tensor) -> Any:
        return flow_nn(prior, columns=range(x.shape[1]), components=0)(theta, x)

    return JeffreysNPE, {"density_estimator": build}, {}


def _no_components(prior: Distribution) -> tuple:
    """Return the default without a look at whether principal components of x tell more."""

    def build(theta: torch.Tensor, x: torch.Tensor) -> Any:
        return flow_nn(prior, components=0)(theta, x)

    return JeffreysNPE, {"density_estimator": build}, {}


def _no_levels(prior: Distribution) -> tuple:
    """Return the default without likelihoods of levels, and what the flow sees of them."""
    build = replace(flow_nn(prior), statistics=False)
    return JeffreysNPE, {"density_estimator": build, "settings": {"levels": False}}, {}


def _zuko_nsf(z_score: str) -> Callable[[Distribution], tuple]:
    """Return zuko's coupling layers, of our sizes, behind sbi's treatment of the prior's bounds."""

    def variant(prior: Distribution) -> tuple:
        def build(theta: torch.Tensor, x: torch.Tensor) -> Any:
            return build_zuko_nsf(
                theta,
                x,
                z_score_x=z_score,
                hidden_features=[64, 64],
                num_transforms=3,
                num_bins=NUM_BINS,
                x_dist=prior,
                passes=2,
            )

        return JeffreysNPE, {"objective": "ml", "density_estimator": build}, {}

    return variant


def _no_gaussian(prior: Distribution) -> tuple:
    """Return the default without the layer that is a Gaussian given x."""

    def build(theta: torch.Tensor, x: torch.Tensor) -> Any:
        flow = flow_nn(prior)(theta, x)
        layers = flow.net.transform.transforms
        kept = [layer for layer in layers if not isinstance(layer, ConditionalGaussian)]
        flow.net.transform.transforms = nn.ModuleList(kept)
        return flow

    return JeffreysNPE, {"density_estimator": build}, {}


def _with_embedding(network: Callable[[int], nn.Module]) -> Callable[[Distribution], tuple]:
    """Return sbi's NPE with an embedding network of so many columns of x, to be learnt."""

    def build(theta: torch.Tensor, x: torch.Tensor) -> Any:
        return posterior_nn("maf", embedding_net=network(x.shape[1]))(theta, x)

    return lambda prior: (NPE, {"density_estimator": build}, {})


def _dual(stiffness: float, bound: float) -> ResilientDual:
    default = weighting("dual")
    assert isinstance(default, ResilientDual)
    return replace(default, costs=(_DATA, HuberCost(stiffness, bound), _DATA))


VARIANTS: dict[str, Callable[[Distribution], tuple]] = {
    "sbi NPE (maf)": lambda prior: (NPE, {}, {}),
    "sbi NPE (nsf)": lambda prior: (NPE, {"density_estimator": "nsf"}, {}),
    "sbi NPE (maf), five members": lambda prior: (NPE, {"members": 5}, {}),
    "sbi NPE (maf), dropout 0.2": lambda prior: (
        NPE,
        {"density_estimator": posterior_nn("maf", dropout_probability=0.2)},
        {},
    ),
    "sbi NPE (maf), FCEmbedding": _with_embedding(FCEmbedding),
    "sbi NPE (maf), CNNEmbedding": _with_embedding(lambda columns: CNNEmbedding((columns,))),
    "sbi NPE (maf), rate 2e-3": lambda prior: (NPE, {}, {"learning_rate": 2e-3}),
    "ml, our flow": _jeffreys(objective="ml"),
    "ml, five members": _jeffreys(objective="ml", members=5),
    "ml, weight decay 0.1": _jeffreys(objective="ml", settings={"weight_decay": 0.1}),
    "ml, rate 1e-3": _jeffreys({"learning_rate": 1e-3}, objective="ml"),
    "ml, same layers behind sbi's z-scoring": _zuko_nsf("independent"),
    "ml, same layers behind sbi's logit": _zuko_nsf("transform_to_unconstrained"),
    "ml, five transforms": lambda prior: (
        JeffreysNPE,
        {"objective": "ml", "density_estimator": flow_nn(prior, num_transforms=5)},
        {},
    ),
    "ml, mdn": _jeffreys(objective="ml", density_estimator="mdn"),
    "jeffreys": _jeffreys(),
    "jeffreys, quadratic price": _jeffreys(objective="dual_quadratic"),
    "fixed weights 1 1 1": _jeffreys(objective="fixed"),
    "fixed weights 1 10 1": _jeffreys(objective=FixedWeights((1.0, 10.0, 1.0))),
    "jeffreys, proxy mlp": _jeffreys(proxy="mlp"),
    "jeffreys, each Gaussian on its own": _jeffreys(proxy=proxy_nn("likelihood")),
    "jeffreys, all units bend alike": _jeffreys(settings={"sharpness": False}),
    "jeffreys, one Gaussian": _jeffreys(proxy=proxy_nn("likelihood", num_components=1)),
    "jeffreys, three Gaussians": _jeffreys(proxy=proxy_nn("likelihood", num_components=3)),
    "jeffreys, no pairs of the proxy's own": _jeffreys(draws=Draws(simulated=0.0)),
    "jeffreys, all terms in every step": _jeffreys(draws=Draws(every=1)),
    "jeffreys, Adam": _jeffreys(settings={"muon": False}),
    "jeffreys, D2 trains the proxy in full": _jeffreys(settings={"limits": Limits(proxy=3.0)}),
    "jeffreys, D2 does not train the proxy": _jeffreys(settings={"limits": Limits(proxy=1e-6)}),
    "jeffreys, the proxy is never put back": _jeffreys(settings={"proxy_plateau": False}),
    "jeffreys, one likelihood in the pool": _jeffreys(settings={"stack": False}),
    "jeffreys, no lower price is tried": _jeffreys(settings={"trials": False}),
    "jeffreys, rates times ten": _jeffreys({"learning_rate": 4e-2}, proxy_learning_rate=5e-2),
    "jeffreys, rates by ten": _jeffreys({"learning_rate": 4e-4}, proxy_learning_rate=5e-4),
    "jeffreys, price of D2 bounded by 1": _jeffreys(objective=_dual(30.0, 1.0)),
    "jeffreys, price of D2 bounded by 10": _jeffreys(objective=_dual(30.0, 10.0)),
    "jeffreys, no jitter": _jeffreys(draws=Draws(jitter=0.0)),
    "jeffreys, 6 base draws": _jeffreys(draws=Draws(base=6)),
    "jeffreys, no gauge": _jeffreys(draws=Draws(gauge=0.0)),
    "jeffreys, no Gaussian given x": _no_gaussian,
    "jeffreys, all columns of x": _all_columns,
    "jeffreys, no components": _no_components,
    "jeffreys, no levels": _no_levels,
    "jeffreys, no logarithms of x": lambda prior: (
        JeffreysNPE,
        # It sees all columns, too, and codes of missing values as values.
        {"density_estimator": flow_nn(prior, embedding_net=nn.Flatten())},
        {},
    ),
    "jeffreys, eight bins": lambda prior: (
        JeffreysNPE,
        {"density_estimator": flow_nn(prior, num_bins=8)},
        {},
    ),
    "jeffreys, three times too long": _jeffreys(times=3),
}
