"""Distributions as JSON and tensors: names out of a fixed table, and their parameters."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent

__all__ = ["Tensors", "describe_distribution", "missing_class", "rebuild_distribution"]

# Arguments of a distribution that are its attributes as well.
_DISTRIBUTIONS: dict[str, tuple[Callable[..., Distribution], tuple[str, ...]]] = {
    "BoxUniform": (BoxUniform, ("low", "high")),
    "MultivariateNormal": (distributions.MultivariateNormal, ("loc", "scale_tril")),
    "Normal": (distributions.Normal, ("loc", "scale")),
    "LogNormal": (distributions.LogNormal, ("loc", "scale")),
    "Uniform": (distributions.Uniform, ("low", "high")),
    "Exponential": (distributions.Exponential, ("rate",)),
    "Gamma": (distributions.Gamma, ("concentration", "rate")),
    "Beta": (distributions.Beta, ("concentration1", "concentration0")),
}

Tensors: TypeAlias = dict[str, Tensor]


def describe_distribution(distribution: Distribution, key: str, tensors: Tensors) -> dict[str, Any]:
    """Return the structure of a distribution, and add its parameters to the tensors."""
    kind = type(distribution)
    known = _DISTRIBUTIONS.get(kind.__name__)
    entry: dict[str, Any] = {"name": kind.__name__}
    if isinstance(distribution, MultipleIndependent):
        entry["parts"] = [
            describe_distribution(part, f"{key}.{i}", tensors)
            for i, part in enumerate(distribution.dists)
        ]
    elif isinstance(distribution, Independent) and kind is Independent:
        entry["parts"] = [describe_distribution(distribution.base_dist, f"{key}.0", tensors)]
        entry["ndims"] = distribution.reinterpreted_batch_ndims
    elif known is not None and known[0] is kind:
        for name in known[1]:
            tensors[f"{key}.{name}"] = torch.as_tensor(getattr(distribution, name))
    else:
        return {"name": kind.__name__, "missing": True}
    # Whether it refuses or answers -inf outside of its support.
    entry["validate"] = bool(distribution._validate_args)
    return entry


def missing_class(entry: Mapping[str, Any]) -> str | None:
    """Return the name of a class that is not stored, if there is one."""
    if entry.get("missing"):
        return entry["name"]
    return next(filter(None, map(missing_class, entry.get("parts", ()))), None)


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
        ValueError: If the class is not stored and none is given.
    """
    missing = missing_class(entry)
    if missing is not None:
        if given is None:
            raise ValueError(
                f"The prior is of class {missing}, which a file cannot hold: pass it again, "
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
    else:
        kind, arguments = _DISTRIBUTIONS[name]
        distribution = kind(**{argument: tensors[f"{key}.{argument}"] for argument in arguments})
    distribution._validate_args = entry["validate"]
    return distribution
