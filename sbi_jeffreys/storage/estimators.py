"""Estimators as names, numbers and tensors, and back.

The structure says how to build the modules again: names out of fixed tables, numbers and shapes.
What has no name (functions that build a flow or a proxy) must be handed in again. Probes
(:mod:`sbi_jeffreys.storage.probes`) tell whether what was rebuilt is what was stored.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalEstimatorBuilder
from sbi.neural_nets.factory import model_builders
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import Distribution

from ..base import Base
from ..embedding import put_to_rest, rests
from ..estimator import JeffreysEstimator
from ..flows import DEFAULT_FLOW, FlowBuilder, flow_nn
from ..layers.autoregressive import accelerate
from ..likelihood.base import Likelihood
from ..likelihood.discrete import DISCRETE
from ..likelihood.network import BendingMLP
from ..likelihood.stacking import Stack
from ..proxy import EnergyProxy, ProxyBuilder, proxy_nn
from ..selection.missing import FillingSizes
from ..selection.seen import Selection
from ..selection.statistics import NO_STATISTICS, StatisticsSizes
from ..utils.seeding import seeded
from ..walls import SoftWalls
from .distributions import (
    Tensors,
    describe_distribution,
    missing_class,
    rebuild_distribution,
)
from .probes import probes_of

__all__ = ["describe_estimator", "is_nameable", "rebuild_estimator"]

# Rows of the dummy data: enough for every builder's z-scoring.
_DUMMY_ROWS = 64


def describe_estimator(
    estimator: ConditionalDensityEstimator, name: str | None
) -> tuple[Tensors, dict[str, Any]]:
    """Return an estimator's tensors, with probes of it, and its structure.

    Args:
        estimator: With an attribute ``spec``, or without.
        name: Name of an estimator without one; ``None`` for none.

    Raises:
        ValueError: If no estimator has that name.
    """
    joint = isinstance(estimator, JeffreysEstimator)
    proxy = estimator.proxy if isinstance(estimator, JeffreysEstimator) else None
    spec: Mapping[str, Any] = getattr(estimator, "spec", None) or {}
    name = name or spec.get("density_estimator")
    if name not in (None, DEFAULT_FLOW, *model_builders):
        raise ValueError(
            f"Unknown density_estimator {name!r}; choose one of "
            f"{[DEFAULT_FLOW, *model_builders]}, or "
            "none: then load() takes the builder again."
        )
    weights = _plain_weights(estimator)
    others: Tensors = {}
    if joint:
        # It stands in the structure, where it has been since format 3.1.
        del weights["pool_weight"]
        # Programs of formats before 3.12 know of no such weight.
        others["reach"] = weights.pop("reach")
    tensors = others | {f"estimator.{k}": v for k, v in weights.items()}
    structure: dict[str, Any] = {
        "joint": joint,
        "weight": float(getattr(estimator, "weight", 0.0)) if joint else 0.0,
        "density_estimator": name,
        "density_estimator_kwargs": dict(spec.get("density_estimator_kwargs", {})),
        "walls": any(getattr(m, "f", None) is SoftWalls for m in estimator.modules()),
        **Selection.of(estimator)._asdict(),
        "input_shape": list(estimator.input_shape),
        "condition_shape": list(estimator.condition_shape),
        "embedding_rests": joint and rests(estimator.flow),
        "proxy": None,
        "base": None,
        "stack": None,
    }
    if proxy is not None:
        structure["proxy"] = {
            "name": spec.get("proxy"),
            "kwargs": dict(spec.get("proxy_kwargs", {})) | _form(proxy),
        }
        structure["base"] = describe_distribution(proxy.base.distribution, "base", tensors)
        tensors["base_anchor"] = proxy.base.anchor
        tensors["base_floor"] = proxy.base.floor
        tensors["base_units"] = proxy.base.units
        if estimator.stack is not None:
            structure["stack"] = [member.common for member in estimator.stack.others]
    return tensors | probes_of(estimator), structure


def _plain_weights(estimator: nn.Module) -> dict[str, Any]:
    """Return its weights, with sharpness where every program looks for it: in the layers."""
    weights = dict(estimator.state_dict())
    for name, network in estimator.named_modules():
        if isinstance(network, BendingMLP):
            del weights[f"{name}.sharpness"]
            weights |= {f"{name}.{k}": v for k, v in network.plain_weights().items()}
    return weights


def is_nameable(structure: Mapping[str, Any]) -> bool:
    """Return whether the file will hold everything that its models need."""
    proxy, base = structure["proxy"], structure["base"]
    return proxy is None or (proxy["name"] is not None and missing_class(base) is None)


def rebuild_estimator(
    structure: Mapping[str, Any],
    tensors: Tensors,
    build: ConditionalEstimatorBuilder[ConditionalDensityEstimator] | None,
    build_proxy: ProxyBuilder | None,
    prior: Distribution | None,
) -> ConditionalDensityEstimator:
    """Return the estimator that a structure and its tensors describe.

    Args:
        structure: As :func:`describe_estimator` returns it.
        tensors: As there.
        build: Builder of the flow, where it has no name.
        build_proxy: Builder of the proxy, where it has no name.
        prior: The base of the proxy, where its class is none that is stored.

    Raises:
        ValueError: If a builder is needed and missing, or the weights do not fit.
    """
    # What of x it sees was chosen by data that are not there any more.
    if isinstance(build, FlowBuilder):
        walls = build.prior if structure["walls"] else None
        build = replace(build, prior=walls, selection=_selection(structure))
    builder = build or _builder(structure)
    with seeded(0):
        theta = torch.rand(_DUMMY_ROWS, *structure["input_shape"])
        x = torch.randn(_DUMMY_ROWS, *structure["condition_shape"])
        estimator = builder(theta, x)
        if structure.get("embedding_rests"):
            put_to_rest(estimator)
        if structure["joint"]:
            estimator = _join(estimator, theta, x, structure, tensors, build_proxy, prior)
    prefix = "estimator."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if structure["joint"]:
        weights["pool_weight"] = torch.tensor(structure.get("weight", 0.0))
        # Of files before format 3.12 it is not known.
        weights["reach"] = tensors.get("reach", torch.full_like(estimator.reach, torch.nan))
    try:
        estimator.load_state_dict(weights)
    except RuntimeError as error:
        at_fault = _at_fault(estimator, weights, structure, build, build_proxy)
        raise ValueError(
            f"The weights do not fit into what {at_fault} builds. Use the name or the builder that "
            f"the estimator was trained with. {error}"
        ) from error
    _name(estimator, structure)
    return estimator.eval()


def _name(estimator: ConditionalDensityEstimator, structure: Mapping[str, Any]) -> None:
    """Let an estimator know what built it, as a trainer does: it may be saved again."""
    spec = {key: structure[key] for key in ("density_estimator", "density_estimator_kwargs")}
    estimator.spec = dict(spec)
    if isinstance(estimator, JeffreysEstimator):
        estimator.flow.spec = dict(spec)
        proxy = structure["proxy"] or {"name": None, "kwargs": {}}
        estimator.spec |= {"proxy": proxy["name"], "proxy_kwargs": proxy["kwargs"]}


def _at_fault(
    estimator: ConditionalDensityEstimator,
    weights: Tensors,
    structure: Mapping[str, Any],
    build: Any,
    build_proxy: Any,
) -> str:
    """Return what to call the builder whose weights do not fit: the flow's, or the proxy's."""
    of_flow, prefix = estimator, ""
    if structure["proxy"] is not None:
        of_flow, prefix = estimator.flow, "flow."
    try:
        of_flow.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    except RuntimeError:
        name = structure["density_estimator"]
        return "the builder that was passed" if build else f"density_estimator {name!r}"
    return (
        "the build_proxy that was passed"
        if build_proxy
        else f"proxy {structure['proxy']['name']!r}"
    )


def _builder(
    structure: Mapping[str, Any],
) -> ConditionalEstimatorBuilder[ConditionalDensityEstimator]:
    name, kwargs = structure["density_estimator"], structure["density_estimator_kwargs"]
    if name is None:
        raise ValueError(
            "This file does not say what built its estimator: that was a function, which a file "
            "cannot hold, or an estimator of sbi's whose name was not passed to save(). Pass the "
            "builder, load(path, build=...), for sbi's default build=posterior_nn('maf')."
        )
    if name != DEFAULT_FLOW:
        return posterior_nn(model=name, **kwargs)
    # Where the walls stand is among the tensors; that there are any is structure.
    d = structure["input_shape"][0]
    walls = BoxUniform(torch.zeros(d), torch.ones(d)) if structure["walls"] else None
    return replace(flow_nn(walls, **kwargs), selection=_selection(structure))


def _selection(structure: Mapping[str, Any]) -> Selection:
    """Return what of x a flow sees."""
    columns = structure.get("columns")
    if columns is None and len(structure["condition_shape"]) == 1:
        columns = range(structure["condition_shape"][0])
    filling = structure.get("filling")
    filling = filling and FillingSizes(*filling)
    statistics = StatisticsSizes(*structure.get("statistics", NO_STATISTICS))
    return Selection(columns, filling, structure.get("components", 0), statistics)


def _join(
    flow: ConditionalDensityEstimator,
    theta: Tensor,
    x: Tensor,
    structure: Mapping[str, Any],
    tensors: Tensors,
    build_proxy: ProxyBuilder | None,
    prior: Distribution | None,
) -> JeffreysEstimator:
    """Join a flow with a proxy, as the trainer does."""
    accelerate(flow)
    proxy = structure["proxy"]
    if proxy is None:
        return JeffreysEstimator(flow, theta, x)
    if build_proxy is None:
        if proxy["name"] is None:
            raise ValueError(
                "This proxy was built by a function of its own, which a file cannot hold: pass it "
                "again, load(path, build_proxy=...)."
            )
        sizes = _sizes_of_likelihood(tensors, "proxy.network")
        build_proxy = proxy_nn(proxy["name"], **proxy["kwargs"] | sizes)
    elif isinstance(build_proxy, partial) and build_proxy.keywords.get("common") == DISCRETE:
        # The levels of the data, which are not there any more.
        build_proxy = partial(build_proxy, **_sizes_of_likelihood(tensors, "proxy.network"))
    distribution = rebuild_distribution(structure["base"], "base", tensors, prior)
    # All that a base keeps of the training data; in older files the floor follows from the anchor,
    # and has no slope.
    base = Base(distribution, tensors["base_anchor"])
    base.floor = tensors.get("base_floor", base.floor)
    base.units = tensors.get("base_units", torch.full_like(base.units, torch.inf))
    base.units[0].nan_to_num_(posinf=0.0)
    estimator = JeffreysEstimator(flow, theta, x, base=base, build_proxy=build_proxy)
    if forms := structure.get("stack"):
        others = []
        for number, form in enumerate(forms):
            sizes = _sizes_of_likelihood(tensors, f"stack.others.{number}")
            build = proxy_nn("likelihood", **proxy["kwargs"] | sizes | {"common": form})
            network = estimator.new_network(theta, x, base, build)
            assert isinstance(network, Likelihood)
            others.append(network)
        estimator.stack = Stack(others, torch.zeros(1 + len(others)))
    return estimator


def _form(proxy: EnergyProxy) -> dict[str, int]:
    """Return the form of a likelihood, which held-out data have chosen, as a keyword argument."""
    return {} if proxy.likelihood is None else {"common": proxy.likelihood.common}


def _sizes_of_likelihood(tensors: Tensors, module: str) -> dict[str, int]:
    """Return a likelihood's keyword arguments whose defaults are not those of old."""
    network = f"estimator.{module}."
    layers = [name for name in tensors if name.startswith(network + "of_theta.")]
    sizes = {"hidden_layers": sum(name.endswith(".weight") for name in layers) - 1}
    if network + "values" in tensors:
        return sizes | {"num_levels": tensors[network + "values"].shape[1]}
    if network + "offsets" in tensors:
        return sizes | {"num_components": len(tensors[network + "offsets"])}
    return {}
