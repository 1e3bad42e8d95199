"""Distributions as JSON and tensors: names out of a fixed table, and their parameters."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.sbiutils import ImproperEmpirical
from sbi.utils.user_input_checks_utils import OneDimPriorWrapper
from torch import Tensor, distributions
from torch.distributions import (
    AffineTransform,
    Distribution,
    ExpTransform,
    Independent,
    Transform,
    TransformedDistribution,
)

__all__ = [
    "Tensors",
    "class_name",
    "describe_distribution",
    "is_described",
    "missing_class",
    "rebuild_distribution",
]

Tensors: TypeAlias = dict[str, Tensor]


def _improper(mean: Tensor, variance: Tensor) -> ImproperEmpirical:
    """Return what sbi puts in the place of no prior, of which it knows the moments only."""
    distribution = ImproperEmpirical(torch.stack([mean, mean]))
    # No parameters would give these moments to the bit.
    distribution._mean, distribution._variance = mean, variance
    return distribution


# What builds a distribution again, and the arguments for that, which are its attributes as well.
_DISTRIBUTIONS: dict[type, tuple[Callable[..., Distribution], tuple[str, ...]]] = {
    BoxUniform: (BoxUniform, ("low", "high")),
    distributions.MultivariateNormal: (distributions.MultivariateNormal, ("loc", "scale_tril")),
    distributions.Normal: (distributions.Normal, ("loc", "scale")),
    distributions.LogNormal: (distributions.LogNormal, ("loc", "scale")),
    distributions.Uniform: (distributions.Uniform, ("low", "high")),
    distributions.Exponential: (distributions.Exponential, ("rate",)),
    distributions.Gamma: (distributions.Gamma, ("concentration", "rate")),
    distributions.Beta: (distributions.Beta, ("concentration1", "concentration0")),
    distributions.Cauchy: (distributions.Cauchy, ("loc", "scale")),
    distributions.Gumbel: (distributions.Gumbel, ("loc", "scale")),
    distributions.HalfCauchy: (distributions.HalfCauchy, ("scale",)),
    distributions.HalfNormal: (distributions.HalfNormal, ("scale",)),
    distributions.InverseGamma: (distributions.InverseGamma, ("concentration", "rate")),
    distributions.Laplace: (distributions.Laplace, ("loc", "scale")),
    distributions.StudentT: (distributions.StudentT, ("df", "loc", "scale")),
    distributions.Weibull: (distributions.Weibull, ("scale", "concentration")),
    ImproperEmpirical: (_improper, ("mean", "variance")),
}
_BY_NAME = {kind.__name__: builder for kind, builder in _DISTRIBUTIONS.items()}


def describe_distribution(distribution: Distribution, key: str, tensors: Tensors) -> dict[str, Any]:
    """Return the structure of a distribution, and add its parameters to the tensors."""
    kind, parts = type(distribution), _parts(distribution)
    entry: dict[str, Any] = {"name": kind.__name__}
    if parts is None and kind not in _DISTRIBUTIONS:
        return entry | {"missing": True}
    if parts is not None:
        entry["parts"] = [
            describe_distribution(part, f"{key}.{i}", tensors) for i, part in enumerate(parts)
        ]
    # Not of sbi's BoxUniform, which derives from it.
    if type(distribution) is Independent:
        entry["ndims"] = distribution.reinterpreted_batch_ndims
    if isinstance(distribution, TransformedDistribution) and parts is not None:
        entry["transforms"] = [
            _describe_transform(transform, f"{key}.transforms.{i}", tensors)
            for i, transform in enumerate(distribution.transforms)
        ]
    for name in _DISTRIBUTIONS[kind][1] if parts is None else ():
        tensors[f"{key}.{name}"] = torch.as_tensor(getattr(distribution, name))
    # Whether it refuses or answers -inf outside of its support.
    entry["validate"] = bool(distribution._validate_args)
    return entry


def _parts(distribution: Distribution) -> list[Distribution] | None:
    """Return what a distribution is made of, ``None`` where a file does not take it apart."""
    if isinstance(distribution, MultipleIndependent):
        return list(distribution.dists)
    if isinstance(distribution, OneDimPriorWrapper):
        return [distribution.prior]
    if isinstance(distribution, Independent) and type(distribution) is Independent:
        return [distribution.base_dist]
    # LogNormal and the like derive from it.
    if isinstance(distribution, TransformedDistribution):
        plain = all(map(_is_plain, distribution.transforms))
        held = plain and type(distribution) is TransformedDistribution
        return [distribution.base_dist] if held else None
    return None


def missing_class(entry: Mapping[str, Any]) -> str | None:
    """Return the name of a class that is not stored, if there is one."""
    if entry.get("missing"):
        return entry["name"]
    return next(filter(None, map(missing_class, entry.get("parts", ()))), None)


def class_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a distribution's class, as whoever made it knows it."""
    return class_name(entry["parts"][0]) if entry["name"] == "OneDimPriorWrapper" else entry["name"]


def is_described(
    distribution: Distribution, entry: Mapping[str, Any], key: str, tensors: Tensors
) -> bool:
    """Return whether a distribution is the one that was described, up to rounding.

    Args:
        distribution: A distribution; whether it validates its arguments does not matter.
        entry: What :func:`describe_distribution` returned.
        key: Where the tensors are, as there.
        tensors: The parameters.
    """
    own: Tensors = {}
    found = describe_distribution(distribution, key, own)
    return _without_validation(found) == _without_validation(entry) and all(
        value.shape == tensors[name].shape
        and torch.allclose(value.to(tensors[name]), tensors[name], atol=0.0)
        for name, value in own.items()
    )


def _without_validation(entry: Mapping[str, Any]) -> dict[str, Any]:
    parts = [_without_validation(part) for part in entry.get("parts", ())]
    return {k: v for k, v in entry.items() if k != "validate"} | {"parts": parts}


def rebuild_distribution(
    entry: Mapping[str, Any], key: str, tensors: Tensors, given: Distribution | None
) -> Distribution:
    """Return the distribution that :func:`describe_distribution` described.

    Args:
        entry: What it returned.
        key: Where the tensors are, as there.
        tensors: The parameters.
        given: Takes the place of a class that is not stored.

    Raises:
        ValueError: If the class is not stored and none is given, or is one that files of later
            versions hold.
    """
    missing = missing_class(entry)
    if missing is not None:
        if given is None:
            raise ValueError(
                f"The prior is of class {missing}, which this file does not hold: pass it again, "
                "load(path, prior=...)."
            )
        return given
    name = entry["name"]
    parts = [
        rebuild_distribution(part, f"{key}.{i}", tensors, None)
        for i, part in enumerate(entry.get("parts", ()))
    ]
    distribution: Distribution
    if name == "MultipleIndependent":
        distribution = MultipleIndependent(parts)
    elif name == "Independent":
        distribution = Independent(parts[0], entry["ndims"])
    elif name == "OneDimPriorWrapper":
        distribution = OneDimPriorWrapper(parts[0])
    elif name == "TransformedDistribution":
        transforms = [
            _rebuild_transform(transform, f"{key}.transforms.{i}", tensors)
            for i, transform in enumerate(entry["transforms"])
        ]
        distribution = TransformedDistribution(parts[0], transforms)
    elif name in _BY_NAME:
        build, arguments = _BY_NAME[name]
        distribution = build(**{argument: tensors[f"{key}.{argument}"] for argument in arguments})
    else:
        raise _unknown(name)
    distribution._validate_args = entry["validate"]
    return distribution


def _is_plain(transform: Transform) -> bool:
    """Return whether a file can hold a transform."""
    if isinstance(transform, AffineTransform) and type(transform) is AffineTransform:
        return all(isinstance(v, Tensor | float | int) for v in (transform.loc, transform.scale))
    return type(transform) is ExpTransform


def _describe_transform(transform: Transform, key: str, tensors: Tensors) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": type(transform).__name__}
    if isinstance(transform, AffineTransform):
        entry["event_dim"] = transform.event_dim
        for name in ("loc", "scale"):
            value = getattr(transform, name)
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value
            else:
                # As a number: torch computes with more digits of it than a tensor would keep.
                entry[name] = value
    return entry


def _rebuild_transform(entry: Mapping[str, Any], key: str, tensors: Tensors) -> Transform:
    if entry["name"] == "ExpTransform":
        return ExpTransform()
    if entry["name"] != "AffineTransform":
        raise _unknown(entry["name"])
    loc, scale = (
        entry[name] if name in entry else tensors[f"{key}.{name}"] for name in ("loc", "scale")
    )
    return AffineTransform(loc, scale, event_dim=entry["event_dim"])


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"The file holds a prior with a {name}, which this version of sbi_jeffreys does not know: "
        "update it."
    )
