r"""The default flow: zuko's neural spline flow with coupling layers, behind soft walls.

zuko's coupling layers and splines. Ours are the features of x
(:mod:`sbi_jeffreys.features.columns`), the soft walls that keep the flow inside of the prior's
support (:mod:`sbi_jeffreys.walls`), the linear part of the posterior, taken out in closed form
(:mod:`sbi_jeffreys.features.regression`), a layer that is a Gaussian given x
(:mod:`sbi_jeffreys.layers.conditional_gaussian`), which features each layer transforms
(:func:`_order`), and the way the spline and its layers are evaluated
(:mod:`sbi_jeffreys.layers.splines`, :mod:`sbi_jeffreys.layers.autoregressive`): the same
parameters, the same values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.zuko_flow import ZukoFlow
from sbi.neural_nets.factory import model_builders
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.core import Flow
from zuko.lazy import UnconditionalDistribution
from zuko.transforms import MonotonicRQSTransform

from .embedding import SeesSums, embedded, evaluating, is_learnt
from .features.linear_posterior import to_standard_space
from .features.regression import LinearRegression
from .features.scales import column_scales, standardizer
from .inputs.priors import check_prior, proper
from .layers.autoregressive import accelerate
from .layers.conditional_gaussian import ConditionalGaussian
from .layers.standard_normal import StandardNormal
from .selection.seen import Seen, Selection, what_to_see
from .utils.checks import check_counts

__all__ = [
    "DEFAULT_FLOW",
    "NUM_BINS",
    "FlowBuilder",
    "flow_builder",
    "flow_nn",
    "plain_flow",
    "starts_in_closed_form",
]

DEFAULT_FLOW = "coupling_nsf"
# Estimators of sbi that take discrete values beside continuous ones.
_MIXED = {"mnle", "mnpe"}
# Eight take more time and gain nothing ("jeffreys, eight bins" in the ablation).
NUM_BINS = 5

# Smallest slope of the splines, as in zuko.
_SLOPE = 1e-3
# Scale of the conditioners' last layers at the start, relative to torch's.
_START = 0.1


def flow_nn(
    prior: Distribution | None = None,
    *,
    hidden_features: int = 64,
    hidden_layers: int = 2,
    num_transforms: int = 3,
    num_bins: int = NUM_BINS,
    embedding_net: nn.Module | None = None,
    columns: Sequence[int] | None = None,
    components: int | None = None,
) -> "FlowBuilder":
    """Return a builder of the default flow, as sbi's ``posterior_nn`` does for its estimators.

    Args:
        prior: Prior whose bounds the flow respects; ``None`` for no bounds.
        hidden_features: Width of the conditioners.
        hidden_layers: Their number of hidden layers.
        num_transforms: Number of coupling layers.
        num_bins: Bins of the splines.
        embedding_net: Network for x, applied after z-scoring; as with sbi's builders, it is
            trained in place, so that every trainer needs one of its own. The output of one that is
            not trained is z-scored too. Without one, columns of x of one sign may be bent
            (:func:`sbi_jeffreys.features.columns.features_of`), and missing values, marked by a
            code like -999, are filled in (:mod:`sbi_jeffreys.selection.missing`).
        columns: Numbers of the columns of x to look at, where x is a vector and there is no
            embedding net. By default those that say something of theta
            (:func:`sbi_jeffreys.selection.screening.informative`).
        components: Number of principal components to look at in place of these columns, 0 for the
            columns themselves. By default those that tell more of theta, if there are such
            (:func:`sbi_jeffreys.selection.components.components_of`); images and series without an
            embedding net are flattened first.

    Returns:
        Function of (theta, x), shapes (n, d) and (n, *event), that builds the flow.

    Raises:
        TypeError: If the prior is no distribution with a density, or the embedding net no module.
        ValueError: If there are columns or components to look at and an embedding net, or a size
            is no integer or too small; from the function, if x is no vector or has no such
            columns, or not so many components.
    """
    if not isinstance(embedding_net, nn.Module | None):
        raise TypeError(
            f"embedding_net must be a module of x, or None, got {embedding_net!r}: of a class, "
            "make an instance."
        )
    if embedding_net is not None and (columns is not None or components):
        raise ValueError(
            "columns and components are of x as the flow sees it, and embedding_net sees all of x: "
            "leave one of the two out, or choose columns in the network."
        )
    check_counts(1, hidden_features=hidden_features, num_bins=num_bins)
    check_counts(0, hidden_layers=hidden_layers, num_transforms=num_transforms)
    if components is not None:
        check_counts(0, components=components)
    return FlowBuilder(
        prior=proper(check_prior(prior)),
        sizes={
            "hidden_features": [hidden_features] * hidden_layers,
            "num_transforms": num_transforms,
            "num_bins": num_bins,
        },
        embedding_net=embedding_net,
        columns=columns,
        components=components,
    )


@dataclass(frozen=True)
class FlowBuilder:
    """Builds the default flow; arguments as those of :func:`flow_nn`, sizes of :func:`plain_flow`.

    ``statistics`` says whether the flow may see these in place of columns in levels
    (:func:`~sbi_jeffreys.selection.seen.what_to_see`), and ``selection`` what one that is to be
    loaded has seen.

    Raises:
        ValueError: When called, if x is no vector or has no such columns or components.
    """

    prior: Distribution | None
    sizes: Mapping[str, Any]
    embedding_net: nn.Module | None
    columns: Sequence[int] | None
    components: int | None
    statistics: bool = True
    selection: Selection | None = None

    @property
    def looks_for_itself(self) -> bool:
        """Whether it is left to the flow what to see of x."""
        return self.embedding_net is None and self.columns is None and self.components is None

    def __call__(self, theta: Tensor, x: Tensor) -> ZukoFlow:
        """Build it for theta (n, d) and x (n, *event)."""
        # An empty condition (density estimation) has nothing to standardize.
        seen = self._seen(theta, x) if x[0].numel() else Seen([nn.Identity()], None)
        embedding = nn.Sequential(*seen.features, self.embedding_net or nn.Flatten())
        learnt = is_learnt(embedding)
        with torch.no_grad(), evaluating(embedding):
            context = embedded(embedding, x[:2] if learnt else x)
            if self.embedding_net is not None and not learnt and context.shape[1]:
                # Nobody else brings to order one what all layers and the proxy see.
                embedding.append(standardizer(context))
                context = embedding[-1](context)
            context = context if seen.sums is None else seen.sums(context)
            net = plain_flow(
                theta,
                None if learnt else context,
                context.shape[1],
                self.prior,
                **self.sizes,
            )
        net = net if seen.sums is None else SeesSums.of(net, seen.sums)
        flow = ZukoFlow(net, embedding, theta[0].shape, x[0].shape)
        accelerate(flow)
        return flow

    def _seen(self, theta: Tensor, x: Tensor) -> Seen:
        if self.embedding_net is not None:
            # A user's network has its own idea of x.
            return Seen([standardizer(x)], None)
        if self.selection is not None:
            return self.selection.blank(theta, x)
        return what_to_see(theta, x, self.columns, self.components, statistics=self.statistics)


def starts_in_closed_form(flow: nn.Module) -> bool:
    """Whether an untrained flow is the default one, which starts at the linear posterior."""
    return any(isinstance(module, LinearRegression) for module in flow.modules())


def plain_flow(
    theta: Tensor,
    context: Tensor | None,
    num_context: int,
    prior: Distribution | None,
    *,
    hidden_features: list[int],
    num_transforms: int,
    num_bins: int,
) -> Flow:
    """Return the default flow of theta given embedded data, evaluated by zuko.

    From theta on: soft walls, the linear part, a Gaussian given x, coupling layers. Where the
    embedding is still to be learnt, linear part and Gaussian leave x to the coupling layers.

    Args:
        theta: Parameters, shape (n, d).
        context: Embedded data, shape (n, c), or None where the embedding is still to be learnt.
        num_context: Number c of embedded features.
        prior: Prior whose bounds the flow respects; ``None`` for no bounds.
        hidden_features: Widths of the networks' hidden layers.
        num_transforms: Number of coupling layers.
        num_bins: Bins of the splines.
    """
    features = theta.shape[-1]
    gaussian = []
    if context is not None and num_context:
        scales = column_scales(context, num_context, theta)
        gaussian.append(ConditionalGaussian(features, *scales, hidden_features))
    coupling = [
        MaskedAutoregressiveTransform(
            features,
            num_context,
            # Two passes: coupling layers, whose inverse costs two evaluations for any d.
            passes=2,
            order=_order(i, features),
            univariate=partial(MonotonicRQSTransform, slope=_SLOPE),
            shapes=[(num_bins,), (num_bins,), (num_bins - 1,)],
            hidden_features=hidden_features,
        )
        for i in range(num_transforms)
    ]
    _start_small([*gaussian, *coupling])
    linear = to_standard_space(theta, context, num_context, prior)
    normal = (torch.zeros(features), torch.ones(features))
    base = UnconditionalDistribution(StandardNormal, *normal, buffer=True)
    return Flow([*linear, *gaussian, *coupling], base)


def _order(layer: int, features: int) -> Tensor:
    """Return the rank of every feature in a layer, shape (d,): the first half transforms the rest.

    Features in one half of a layer do not see each other there. So layers divide them by halves, by
    turns and by pairs: two features that are never apart can only be correlated through others. Of
    six features that is one pair, of ten it is two, of up to five none.
    """
    k = torch.arange(features)
    sizes = [size for size in ((features + 1) // 2, 1, 2) if size < features] or [1]
    rank = (k // sizes[layer % len(sizes)] % 2).argsort(stable=True).argsort()
    # Every other layer goes the other way.
    return features - 1 - rank if layer % 2 else rank


def _start_small(layers: list[nn.Module]) -> None:
    """Let layers begin near to the identity: the linear part is a start worth keeping."""
    for layer in layers:
        network = getattr(layer, "hyper", None)
        for parameter in network[-1].parameters() if isinstance(network, nn.Sequential) else ():
            parameter.data.mul_(_START)


def flow_builder(density_estimator: Any, prior: Distribution | None) -> Any:
    """Return the builder that goes by a name of ours or of sbi's; a function is returned as it is.

    Args:
        density_estimator: Name, or function of (theta, x).
        prior: Prior, for the default flow, as :func:`sbi_jeffreys.inputs.priors.check_prior`
            returns it.

    Raises:
        ValueError: If no estimator has that name.
        TypeError: If it is neither a name nor a function.
    """
    if not isinstance(density_estimator, str):
        if not callable(density_estimator) or isinstance(density_estimator, nn.Module):
            raise TypeError(
                "density_estimator must be a name or a function of (theta, x) that builds an "
                f"estimator, got {type(density_estimator).__name__}."
            )
        return density_estimator
    if density_estimator == DEFAULT_FLOW:
        return replace(flow_nn(), prior=proper(prior))
    if density_estimator in _MIXED:
        raise ValueError(
            f"density_estimator={density_estimator!r} is for discrete parameters or data beside "
            "continuous ones, and no proxy has a density for these: take sbi's own MNPE or MNLE."
        )
    if density_estimator not in model_builders:
        raise ValueError(
            f"Unknown density_estimator {density_estimator!r}; choose {DEFAULT_FLOW!r}, one of "
            f"sbi's {sorted(model_builders.keys() - _MIXED)}, or pass a function of (theta, x)."
        )
    return posterior_nn(model=density_estimator)
