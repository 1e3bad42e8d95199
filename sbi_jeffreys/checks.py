"""Checks of what users hand in: each says what was wrong, with the value, and what to do."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from sbi.utils.sbiutils import ImproperEmpirical, within_support
from sbi.utils.user_input_checks import process_prior
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["check_positive", "check_prior", "check_simulations", "warn_outside_prior"]


def check_positive(**values: float | None) -> None:
    """Refuse hyper-parameters that are not positive; ``None`` passes.

    Raises:
        ValueError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_prior(prior: Any) -> Distribution | None:
    """Return the prior in the form that sbi works with.

    Raises:
        TypeError: If it is no torch distribution, or cannot evaluate its density.
        ValueError: If it is a scalar distribution, or one with several batch dimensions.
    """
    if prior is None or isinstance(prior, ImproperEmpirical):
        return prior
    if not isinstance(prior, Distribution):
        raise TypeError(
            f"prior must be a torch distribution, got {type(prior).__name__}. Wrap other priors "
            "with sbi.utils.process_prior, or pass prior=None."
        )
    sample = prior.sample()
    if sample.dim() == 0:
        raise ValueError(
            f"prior is scalar: {prior!r} draws numbers, not vectors. Give it one dimension, "
            "for example BoxUniform(low=torch.zeros(1), high=torch.ones(1))."
        )
    try:
        prior.log_prob(sample)
    except (NotImplementedError, AttributeError) as error:
        raise TypeError(
            f"prior of type {type(prior).__name__} has no usable log_prob ({error!r}). The proxy "
            "is defined relative to the prior's density: implement log_prob, or pass prior=None."
        ) from error
    return process_prior(prior)[0]


def _as_float(name: str, values: Any) -> Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name} must be a torch tensor or a numpy array, got {type(values).__name__}."
        )
    if values.is_complex():
        raise TypeError(f"{name} is complex; stack its real and imaginary parts instead.")
    return values.to(torch.float32)


def check_simulations(theta: Any, x: Any, prior: Distribution | None) -> tuple[Tensor, Tensor]:
    """Return simulations as float32 tensors.

    Args:
        theta: Parameters, (n, d).
        x: Data, (n, *event).
        prior: Prior, for d, or None.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If shapes do not fit, nothing is there, or theta is not finite or constant.
    """
    theta, x = _as_float("theta", theta), _as_float("x", x)
    if theta.dim() != 2 or x.dim() < 2:
        raise ValueError(
            f"theta must have shape (n, d) and x (n, ...), got {tuple(theta.shape)} and "
            f"{tuple(x.shape)}. For a single number per simulation use .reshape(-1, 1)."
        )
    if len(theta) != len(x):
        raise ValueError(
            f"theta holds {len(theta)} simulations, x holds {len(x)}: give one x for each theta."
        )
    if len(theta) == 0 or theta.shape[1] == 0 or x[0].numel() == 0:
        raise ValueError(
            f"No simulations: theta has shape {tuple(theta.shape)} and x {tuple(x.shape)}."
        )
    if prior is not None and not isinstance(prior, ImproperEmpirical):
        dim = prior.sample().numel()
        if theta.shape[1] != dim:
            raise ValueError(
                f"theta has {theta.shape[1]} parameters, the prior has {dim}; pass the parameters "
                "in the order of the prior."
            )
    finite = theta.isfinite().all(dim=1)
    if not finite.all():
        rows = (~finite).nonzero().flatten()
        raise ValueError(
            f"theta holds NaN or inf in {len(rows)} of {len(theta)} rows (the first is row "
            f"{int(rows[0])}); remove these simulations, and find out where they come from."
        )
    constant = (theta == theta[0]).all(dim=0)
    if len(theta) > 1 and constant.any():
        column = int(constant.nonzero()[0])
        raise ValueError(
            f"theta is constant in column {column} (= {float(theta[0, column]):g}): a parameter "
            "that never varies has no density; leave it out of theta and of the prior."
        )
    return theta, x


def warn_outside_prior(theta: Tensor, prior: Distribution | None) -> None:
    """Warn, with the fraction, if parameters lie outside of the prior's support."""
    if prior is None or isinstance(prior, ImproperEmpirical):
        return
    outside = 1 - within_support(prior, theta).float().mean().item()
    if outside > 0:
        warnings.warn(
            f"{outside:.1%} of theta lie outside of the prior's support. They are kept, and the "
            "posterior will have no mass there; check that the prior is the one simulated from.",
            stacklevel=3,
        )
