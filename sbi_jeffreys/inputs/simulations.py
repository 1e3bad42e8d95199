"""What users bring as simulations. Errors say what was wrong, with the value, and what to do."""

from typing import Any

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from ..utils.checks import check_default_type
from ..utils.seeding import aside
from ..utils.warn import warn
from ..walls import support_bounds
from .arrays import as_tensor, check_resolution
from .priors import draw, proper

__all__ = [
    "check_finite",
    "check_held_out",
    "check_same_rows",
    "check_same_simulations",
    "check_simulations",
    "check_varies",
    "constant_column",
    "fraction_outside_prior",
    "warn_outside_prior",
]

# Beyond a bound by rounding: this share of it at most.
_ROUNDING = 1e-6


def check_simulations(
    theta: Any, x: Any, prior: Distribution | None, event_shape: torch.Size | None = None
) -> tuple[Tensor, Tensor]:
    """Return simulations as float32 tensors.

    Args:
        theta: Parameters, (n, d).
        x: Data, (n, *event).
        prior: Prior, for d, or None.
        event_shape: Shape of one x, if earlier simulations have fixed it.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If shapes do not fit, nothing is there, theta is not finite, or torch makes
            networks of another type.
    """
    check_default_type()
    given = {"theta": as_tensor("theta", theta), "x": as_tensor("x", x)}
    theta, x = (values.to(torch.float32) for values in given.values())
    if theta.dim() != 2 or x.dim() < 2:
        raise ValueError(
            f"theta must have shape (n, d) and x (n, ...), got {tuple(theta.shape)} and "
            f"{tuple(x.shape)}. For a single number per simulation use .reshape(-1, 1)."
        )
    for (name, values), rounded in zip(given.items(), (theta, x), strict=True):
        check_resolution(name, values, rounded)
    if len(theta) != len(x):
        raise ValueError(
            f"theta holds {len(theta)} simulations, x holds {len(x)}: give one x for each theta."
        )
    if len(theta) == 0 or theta.shape[1] == 0 or x[0].numel() == 0:
        raise ValueError(
            f"No simulations: theta has shape {tuple(theta.shape)} and x {tuple(x.shape)}."
        )
    if event_shape is not None and x.shape[1:] != event_shape:
        raise ValueError(
            f"One x has shape {tuple(x.shape[1:])}, in earlier simulations {tuple(event_shape)}: "
            "the data of all simulations must have one shape."
        )
    prior = proper(prior)
    if prior is not None:
        with aside():
            dim = draw(prior, 1).numel()
        if theta.shape[1] != dim:
            raise ValueError(
                f"theta has {theta.shape[1]} parameters, the prior has {dim}; pass the parameters "
                "in the order of the prior."
            )
    check_finite("theta", theta, "these simulations")
    return theta, x


def check_varies(theta: Tensor) -> None:
    """Refuse to train where one of the parameters, shape (n, d), is the same in all simulations.

    Raises:
        ValueError: With the first such column, and its value.
    """
    column = constant_column(theta)
    if column is not None:
        raise ValueError(
            f"theta is constant in column {column} (= {float(theta[0, column]):g}) of all "
            f"{len(theta)} simulations: a parameter that never varies has no density; leave it out "
            "of theta and of the prior."
        )


def check_finite(name: str, rows: Tensor, what: str) -> None:
    """Refuse rows, shape (n, d), that hold NaN or inf.

    Args:
        name: What they are called in the message.
        rows: Rows.
        what: What the message says to remove.

    Raises:
        ValueError: If there are such rows, with their number and the first of them.
    """
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise ValueError(
            f"{name} holds NaN or inf in {len(bad)} of {len(rows)} rows (the first is row "
            f"{int(bad[0])}); remove {what}, and find out where they come from."
        )


def constant_column(rows: Tensor) -> int | None:
    """Return the first column of rows, shape (n, d), that never varies, if there is one."""
    constant = (rows == rows[0]).all(dim=0)
    return int(constant.nonzero()[0]) if constant.any() else None


def check_held_out(
    data: Any,
    prior: Distribution | None,
    event_shape: torch.Size | None,
    *,
    with_invalid: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return held-out simulations as float32 tensors.

    Args:
        data: theta and x.
        prior: As in :func:`check_simulations`.
        event_shape: As there.
        with_invalid: Whether x may hold NaN and inf, as the x do that are trained on.

    Raises:
        TypeError, ValueError: As :func:`check_simulations`; and if x holds NaN or inf.
    """
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        of = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        raise TypeError(f"validation_data must be (theta, x), got {type(data).__name__}{of}.")
    theta, x = data
    theta, x = check_simulations(theta, x, prior, event_shape)
    if not with_invalid:
        check_finite("x of validation_data", x.flatten(1), "them")
    return theta, x


def check_same_rows(rows: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None) -> None:
    """Refuse to resume a training with other held-out rows: its losses would not compare.

    Raises:
        ValueError: If they are others than before, or a fraction was held out then.
    """
    same = before is not None and all(
        a.shape == b.shape and torch.allclose(a, b.to(a), rtol=0.0, atol=0.0, equal_nan=True)
        for a, b in zip(rows, before, strict=True)
    )
    if not same:
        raise ValueError(
            "A training that is resumed goes on with the held-out rows it began with, since losses "
            "on others do not compare: leave validation_data out, or train without "
            "resume_training."
        )


def check_same_simulations(rows: tuple[int, int], before: tuple[int, int]) -> None:
    """Refuse to resume a training with other rounds, and tell of simulations that it leaves out.

    Args:
        rows: First round that is trained on, and number of simulations from there on.
        before: The same of the training that is resumed.

    Raises:
        ValueError: If the first round is another.
    """
    if rows[0] != before[0]:
        raise ValueError(
            f"A training that is resumed goes on with the simulations that it began with, from "
            f"round {before[0]} on, and not from round {rows[0]}: give discard_prior_samples as it "
            "was, or train without resume_training."
        )
    if rows[1] > before[1]:
        warn(
            f"{rows[1] - before[1]} simulations were appended since the training began that is "
            "resumed, and it does without them: train without resume_training to use them."
        )


def fraction_outside_prior(theta: Tensor, prior: Distribution | None) -> float:
    """Return the fraction of the parameters, shape (n, d), outside of the prior's support."""
    prior = proper(prior)
    if prior is None:
        return 0.0
    inside = within_support(prior, theta)
    # All positive numbers are in the support of a log-uniform prior, as torch has it; its bounds
    # have gone through exponentials, theirs and the parameters' may have been rounded differently.
    low, high = (bound.to(theta) for bound in support_bounds(prior, theta.shape[1]))
    low, high = low - _ROUNDING * low.abs(), high + _ROUNDING * high.abs()
    inside &= ((theta >= low) & (theta <= high)).all(dim=1)
    return (~inside).sum().item() / len(inside)


def warn_outside_prior(theta: Tensor, prior: Distribution | None) -> None:
    """Warn, with the fraction, if parameters lie outside of the prior's support."""
    outside = fraction_outside_prior(theta, prior)
    if outside > 0:
        warn(
            f"{outside:.1%} of theta lie outside of the prior's support. They are kept, and the "
            "posterior will have no mass there; check that the prior is the one simulated from."
        )
