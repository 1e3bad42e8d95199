"""Checks of arguments: each says what was wrong, with the value, and what to do."""

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_atomic",
    "check_counts",
    "check_default_type",
    "check_not_negative",
    "check_positive",
    "check_seed",
    "check_training",
]


def check_default_type() -> None:
    """Refuse to go on where torch makes networks and constants of another type than float32.

    Raises:
        ValueError: With that type.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"torch's default type is {torch.get_default_dtype()}, in which networks are made now; "
            "sbi trains in float32: torch.set_default_dtype(torch.float32)."
        )


def check_gradients() -> None:
    """Refuse to train where torch notes no gradients: what is made there can never have any.

    Raises:
        RuntimeError: In ``torch.no_grad()`` or ``torch.inference_mode()``.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "Training needs gradients, which torch does not note here: train outside of "
            "torch.no_grad() and torch.inference_mode()."
        )


def check_weights(weights: Tensor, where: str, *, all_zero: bool) -> None:
    """Refuse weights of x that no training can use.

    Args:
        weights: What a calibration kernel returned, shape (n,).
        where: Which x they are of, for the message.
        all_zero: Whether they may all be zero, since there are other x.

    Raises:
        ValueError: If one is negative or not finite, or all are zero.
    """
    wrong = ~(weights >= 0) | weights.isinf()
    if wrong.any():
        raise ValueError(
            f"calibration_kernel returned {weights[wrong][0].item():g}, and others that are "
            f"negative or not finite, for {int(wrong.sum())} of {len(weights)} x: let it return a "
            "weight of zero or more for each."
        )
    if not (all_zero or weights.any()):
        raise ValueError(
            f"calibration_kernel is zero at all {len(weights)} x {where}: make it wider."
        )


def check_positive(**values: float) -> None:
    """Refuse hyper-parameters that are not positive and finite.

    Raises:
        TypeError: With the name and the value of the first that is no number.
        ValueError: With the name and the value of the first that is not positive.
    """
    for name, value in values.items():
        if not (_is_finite(name, value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_not_negative(**values: float) -> None:
    """Refuse hyper-parameters that are negative or not finite.

    Raises:
        TypeError: With the name and the value of the first that is no number.
        ValueError: With the name and the value of the first that is negative.
    """
    for name, value in values.items():
        if not (_is_finite(name, value) and value >= 0):
            raise ValueError(f"{name} must not be negative, got {value!r}.")


def check_counts(least: int, **values: int) -> None:
    """Refuse numbers of things that are no integers, or too few.

    Args:
        least: The least that will do.
        values: Numbers by their names.

    Raises:
        ValueError: With the name and the value of the first that will not do.
    """
    for name, value in values.items():
        integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not integer or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def _is_finite(name: str, value: float) -> bool:
    try:
        return math.isfinite(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a number, got {value!r}.") from error


def check_seed(seed: Any) -> int | None:
    """Return the seed as a Python integer.

    Raises:
        TypeError: If it is none, nor ``None``.
        ValueError: If torch takes no such seed.
    """
    if seed is None:
        return None
    try:
        if isinstance(seed, bool) or getattr(seed, "dtype", None) in (bool, torch.bool):
            raise TypeError("a truth value")
        number = operator.index(seed)
    except TypeError as error:
        raise TypeError(f"seed must be an integer or None, got {seed!r}.") from error
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seed must lie in [-2^63, 2^64), as torch has it, got {seed!r}.")
    return number


def check_training(
    *,
    num_atoms: int,
    training_batch_size: int,
    calibration_kernel: Any,
    clip_max_norm: float | None,
    validation_fraction: float,
    validation_data: Any,
    dataloader_kwargs: dict[str, Any] | None,
    **positive: float,
) -> None:
    """Refuse arguments of ``JeffreysNPE.train`` that are out of range, or do not go together.

    Args:
        num_atoms: A positive integer.
        training_batch_size: A positive integer.
        calibration_kernel: A function, or ``None``.
        clip_max_norm: Positive, or ``None``.
        validation_fraction: Between 0 and 1.
        validation_data: Held-out simulations, or ``None``; not with ``dataloader_kwargs``.
        dataloader_kwargs: Arguments of torch's loaders, or ``None``.
        positive: The others, by their names.

    Raises:
        TypeError: If a number is none, the kernel no function or the loaders' arguments no
            dictionary.
        ValueError: With the name and the value of the first that will not do.
    """
    check_counts(1, num_atoms=num_atoms, training_batch_size=training_batch_size)
    check_positive(**positive)
    if calibration_kernel is not None and not callable(calibration_kernel):
        raise TypeError(
            "calibration_kernel must be a function of x that returns one weight for each, or None, "
            f"got {calibration_kernel!r}."
        )
    if clip_max_norm is not None:
        check_positive(clip_max_norm=clip_max_norm)
    check_positive(validation_fraction=validation_fraction)
    if not validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), got {validation_fraction}.")
    if not isinstance(dataloader_kwargs, dict | None):
        raise TypeError(
            "dataloader_kwargs must be a dictionary of arguments of torch's DataLoader, or None, "
            f"got {dataloader_kwargs!r}."
        )
    if validation_data is not None and dataloader_kwargs is not None:
        raise ValueError(
            "validation_data and dataloader_kwargs cannot be combined: torch's loaders split the "
            "stored simulations. Leave one of them out."
        )


def check_atomic(batch_size: int, num_held_out: int) -> None:
    """Refuse what leaves the atomic loss nothing to contrast a parameter with.

    Raises:
        ValueError: If a batch, or what is held out, is fewer than 2 simulations.
    """
    if batch_size < 2 or num_held_out < 2:
        raise ValueError(
            f"The atomic loss of later rounds contrasts the parameters of a batch: it needs at "
            f"least 2, got training_batch_size={batch_size} and {num_held_out} held-out "
            "simulations. Append more simulations, or raise training_batch_size."
        )
