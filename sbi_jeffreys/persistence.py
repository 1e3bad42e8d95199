r"""Trained posteriors on disk: one safetensors file, no pickle.

Weights, buffers and the prior's parameters are the file's tensors. What is needed to build the
modules again is JSON in the file's metadata: names out of fixed tables, numbers and shapes, never
code. Loading builds an untrained estimator of the same structure on dummy data and puts the tensors
into it. So that a wrong structure cannot pass unnoticed, the file also holds log densities at a few
points: :func:`save` insists that the rebuilt models reproduce them to the bit, :func:`load` within
rounding, since machines differ.

What has no name (functions that build a flow or a proxy, priors of other classes) is not stored.
The file records that it is missing, and :func:`load` takes it again.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import sbi
import torch
import zuko
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.trainers.base import NeuralInference
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalEstimatorBuilder
from torch import Tensor
from torch.distributions import Distribution

from ._version import __version__
from .flows import DEFAULT_FLOW
from .inputs.priors import check_prior, moved
from .posterior import without_leakage
from .proxy import ProxyBuilder
from .storage.distributions import (
    Tensors,
    class_name,
    describe_distribution,
    is_described,
    missing_class,
    rebuild_distribution,
)
from .storage.estimators import describe_estimator, is_nameable, rebuild_estimator
from .storage.probes import check_probes
from .utils.checks import check_default_type
from .utils.files import atomic_write
from .utils.seeding import aside

__all__ = ["load", "save"]

_FORMAT = "sbi_jeffreys.posterior"
# A new major version is one that older programs cannot read. Since 2 the default flow has a
# Gaussian given x and other splines, since 3 it and the proxy may see logarithms. Since 3.1 flow
# and proxy are pooled with a weight; before, it was zero. Since 3.2 more priors are held: of one
# parameter in sbi's wrapper, transformed by exponentials and affine maps, and sbi's for none. Since
# 3.3 the default flow may see some columns of x only; before, it saw all. Since 3.4 the likelihood
# may have more than three Gaussians; how many is the length of its offsets. Since 3.5 theta may
# move them as one; before, each on its own. Since 3.6 columns of x may be bent around a center.
# Since 3.7 the default flow may see components of x in place of columns. Since 3.8 the floor of the
# proxy's base is held; before, it followed from the anchor; and how many layers the likelihood's
# network has is the number of its weights. Since 3.9 the pool may hear a stack of likelihoods;
# before, the proxy's own alone. Since 3.10 the default flow may fill in missing values of x.
# Since 3.11 the likelihood may be one of levels, and the flow see statistics of it. Since 3.12 it
# is held how far training data reach. Since 3.13 the floor of the proxy's base has a slope, in
# units that are held, and an embedding may have been put to rest. Since 3.14 codes of missing
# values that are counted are held by their places.
_FORMAT_VERSION = (3, 14)

Posterior: TypeAlias = DirectPosterior | ConditionalDensityEstimator


def save(
    posterior: Posterior, path: str | os.PathLike, *, density_estimator: str | None = None
) -> None:
    """Write a trained posterior to a file.

    The structure of an estimator is known from its attribute ``spec``, which ``JeffreysNPE`` sets:
    a dictionary with the names "density_estimator" and "proxy", and where they are not the default
    their keyword arguments "density_estimator_kwargs" and "proxy_kwargs". Without a name,
    :func:`load` needs the builder again.

    Args:
        posterior: A ``DirectPosterior``, or its estimator alone.
        path: File to write, whole or not at all. An old file is replaced.
        density_estimator: Name of an estimator without ``spec``: what ``NPE`` was given, "maf" if
            nothing. "coupling_nsf" is the default of ``JeffreysNPE``.

    Raises:
        FileNotFoundError: If there is no such folder.
        IsADirectoryError: If the path is a folder.
        TypeError: If it is neither a ``DirectPosterior`` nor a density estimator.
        ValueError: If the name is unknown, an estimator that is built by that name does not
            reproduce the trained one, or torch makes networks of another type than float32.
    """
    check_default_type()
    estimator = getattr(posterior, "posterior_estimator", posterior)
    if isinstance(posterior, NeuralInference):
        raise TypeError(
            f"save() takes a posterior, got the trainer {type(posterior).__name__}: pass "
            "trainer.build_posterior(). (To train on elsewhere, pickle the trainer.)"
        )
    if posterior is not estimator and not isinstance(posterior, DirectPosterior):
        raise TypeError(
            f"save() takes a DirectPosterior or an estimator, got {type(posterior).__name__}. Save "
            "its estimator, and build the other kind of posterior after load()."
        )
    if not isinstance(estimator, ConditionalDensityEstimator):
        raise TypeError(
            f"save() takes a DirectPosterior or an estimator, got {type(posterior).__name__}."
        )
    tensors, structure = describe_estimator(estimator, density_estimator)
    if isinstance(posterior, DirectPosterior):
        structure["posterior"] = {
            "prior": describe_distribution(posterior.prior, "prior", tensors),
            "max_sampling_batch_size": posterior.max_sampling_batch_size,
            "enable_transform": posterior.enable_transform,
        }
        if posterior.default_x is not None:
            tensors["default_x"] = posterior.default_x
    # Copies, since tensors in a file share no memory, and have no strides, as a view may.
    tensors = {k: torch.empty(v.shape, dtype=v.dtype).copy_(v.detach()) for k, v in tensors.items()}
    if structure["density_estimator"] is not None and is_nameable(structure):
        rebuilt = rebuild_estimator(structure, tensors, None, None, None)
        check_probes(rebuilt, tensors)
    described = json.dumps(structure)
    metadata = {
        "format": _FORMAT,
        "format_version": ".".join(map(str, _FORMAT_VERSION)),
        "structure": described,
        "sha256": _digest(tensors, described),
        "versions": json.dumps(
            {"sbi_jeffreys": __version__, "sbi": sbi.__version__, "zuko": zuko.__version__}
            | {"torch": str(torch.__version__)}
        ),
    }
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata))


def load(
    path: str | os.PathLike,
    *,
    build: ConditionalEstimatorBuilder[ConditionalDensityEstimator] | None = None,
    build_proxy: ProxyBuilder | None = None,
    prior: Distribution | None = None,
    device: str = "cpu",
) -> Posterior:
    """Read what :func:`save` wrote.

    Args:
        path: File.
        build: Function of (theta, x) that built the flow, where it had no name.
        build_proxy: Function of (theta, context) that built the proxy, where it had no name.
        prior: The prior, where its class is none that a file can hold; in any form that
            ``JeffreysNPE`` takes. Where the file holds it, the same may be passed, and no other.
        device: Where to put it.

    Returns:
        A ``DirectPosterior`` or an estimator, whichever was saved, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the prior is no torch distribution, or cannot evaluate its density.
        ValueError: If the file is truncated, damaged, not one of ours or of a newer format; if a
            builder or the prior is needed and missing, or is another than the one that was used; if
            torch makes networks of another type than float32.
    """
    check_default_type()
    tensors, structure = _read(Path(path))
    if prior is not None and device != "cpu":
        # It may be on the device already, as sbi's trainers want it; what is rebuilt is not.
        prior = moved(prior, "cpu")
    # As the trainer has it: it wraps some.
    prior = check_prior(prior)
    if prior is not None:
        _check_given(prior, structure, tensors)
    # Builders draw initial weights, sbi checks priors: who loads keeps his random numbers.
    with aside():
        estimator = rebuild_estimator(structure, tensors, build, build_proxy, prior)
        check_probes(estimator, tensors)
        estimator.to(device)
        recorded = structure.get("posterior")
        if recorded is None:
            return estimator
        prior = rebuild_distribution(recorded["prior"], "prior", tensors, prior)
        return _direct_posterior(estimator, prior, recorded, tensors.get("default_x"), device)


def _check_given(prior: Distribution, structure: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse a prior that would be ignored, unless it is the one that the file holds.

    Raises:
        ValueError: If nothing needs a prior, and the file holds another or none.
    """
    key, entry = "base", structure.get("base")
    recorded = structure.get("posterior")
    needed = entry is not None and missing_class(entry) is not None
    if recorded is not None:
        key, entry = "prior", recorded["prior"]
        needed = needed or missing_class(entry) is not None
    if needed:
        return
    if entry is None:
        raise ValueError("The file holds an estimator that needs no prior: leave prior= out.")
    if not is_described(prior, entry, key, tensors):
        raise ValueError(
            f"The file holds its own prior, of class {class_name(entry)}, and prior= is another, "
            f"of class {class_name(describe_distribution(prior, key, {}))}: leave prior= out."
        )


def _direct_posterior(
    estimator: ConditionalDensityEstimator,
    prior: Distribution,
    recorded: Mapping[str, Any],
    default_x: Tensor | None,
    device: str,
) -> DirectPosterior:
    posterior = DirectPosterior(
        estimator,
        prior if device == "cpu" else moved(prior, device),
        max_sampling_batch_size=recorded["max_sampling_batch_size"],
        device=device,
        enable_transform=recorded["enable_transform"],
    )
    if default_x is not None:
        posterior.set_default_x(default_x.to(device))
    return without_leakage(posterior)


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is truncated, or no file of sbi_jeffreys: {error}."
        ) from error
    if metadata.get("format") != _FORMAT or "structure" not in metadata:
        raise ValueError(
            f"{str(path)!r} is a safetensors file, but not one that sbi_jeffreys.save() wrote."
        )
    version = metadata.get("format_version", "")
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) > _FORMAT_VERSION[0]:
        raise ValueError(
            f"{str(path)!r} has format {version}, newer than {_FORMAT_VERSION[0]}.x, which this "
            f"sbi_jeffreys {__version__} reads: update it. Written with {metadata.get('versions')}."
        )
    structure = json.loads(metadata["structure"])
    names = structure["density_estimator"], (structure["proxy"] or {}).get("name")
    if int(major) < _FORMAT_VERSION[0] and (names[0] == DEFAULT_FLOW or names[1] == "likelihood"):
        raise ValueError(
            f"{str(path)!r} has format {version}: the default flow and proxy, {DEFAULT_FLOW!r} and "
            f"'likelihood', were others before format {_FORMAT_VERSION[0]}. Train and save again."
        )
    # Older files do not say.
    written = metadata.get("sha256")
    if written is not None and written != _digest(tensors, metadata["structure"]):
        raise ValueError(
            f"{str(path)!r} is damaged: what it holds is not what was saved. Copy or save it again."
        )
    return tensors, structure


def _digest(tensors: Tensors, structure: str) -> str:
    """Return what tells whether weights or structure have changed."""
    found = hashlib.sha256(structure.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
