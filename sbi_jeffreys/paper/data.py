"""Two-dimensional data: a Gaussian mixture with a known density, and the sets of figure 4.

Every set is a function of (number of points, numpy generator), so that training, held-out and test
samples are fresh draws of one distribution. scikit-learn draws those that it has.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from sklearn.datasets import make_circles, make_moons
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from ..utils.seeding import seeded

__all__ = ["DATA_SETS", "Sizes", "Split", "draw", "gaussian_mixture", "split"]


class Split(NamedTuple):
    """Samples to train on, to make choices with, and to report; each of shape (n, d)."""

    train: Tensor
    validation: Tensor
    test: Tensor


def gaussian_mixture(
    *, radius: float = 1.0, across: float = 0.1, along: float = 0.3
) -> Distribution:
    """Return the mixture of figures 2 and 3: five equal components on a circle.

    Args:
        radius: Radius of the circle of the means.
        across: Standard deviation of each component along the radius.
        along: Standard deviation along the circle.
    """
    angle = 2 * math.pi * torch.arange(5) / 5
    normal = torch.stack((angle.cos(), angle.sin()), dim=-1)
    tangent = torch.stack((-angle.sin(), angle.cos()), dim=-1)
    covariance = across**2 * _outer(normal) + along**2 * _outer(tangent)
    return MixtureSameFamily(
        Categorical(torch.ones(5)), MultivariateNormal(radius * normal, covariance)
    )


def _outer(vectors: Tensor) -> Tensor:
    return vectors.unsqueeze(-1) * vectors.unsqueeze(-2)


def _mixture(num: int, rng: Generator) -> np.ndarray:
    with seeded(int(rng.integers(2**31))):
        return gaussian_mixture().sample(torch.Size((num,))).numpy()


def _two_moons(num: int, rng: Generator) -> np.ndarray:
    return make_moons(num, noise=0.1, random_state=int(rng.integers(2**31)))[0]


def _circles(num: int, rng: Generator) -> np.ndarray:
    seed = int(rng.integers(2**31))
    return make_circles(num, noise=0.06, factor=0.5, random_state=seed)[0]


def _rings(num: int, rng: Generator) -> np.ndarray:
    radius = rng.integers(1, 5, num) / 4 + 0.03 * rng.standard_normal(num)
    return _polar(radius, 2 * math.pi * rng.random(num))


def _spirals(num: int, rng: Generator) -> np.ndarray:
    turn = np.sqrt(rng.random(num))
    arm = rng.integers(0, 2, num)
    points = _polar(turn, 3 * math.pi * turn + math.pi * arm)
    return points + 0.03 * rng.standard_normal((num, 2))


def _pinwheel(num: int, rng: Generator) -> np.ndarray:
    radius = 1 + 0.3 * rng.standard_normal(num)
    angle = 2 * math.pi * rng.integers(0, 5, num) / 5 + 0.1 * rng.standard_normal(num) / radius
    return _polar(radius, angle + 0.25 * np.exp(radius))


def _checkerboard(num: int, rng: Generator) -> np.ndarray:
    column = rng.integers(0, 4, num)
    row = 2 * rng.integers(0, 2, num) + column % 2
    return (np.stack((column, row), axis=-1) + rng.random((num, 2)) - 2) / 2


def _eight_gaussians(num: int, rng: Generator) -> np.ndarray:
    centres = _polar(np.ones(num), math.pi / 4 * rng.integers(0, 8, num))
    return centres + 0.1 * rng.standard_normal((num, 2))


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)


DATA_SETS: dict[str, Callable[[int, Generator], np.ndarray]] = {
    "two_moons": _two_moons,
    "circles": _circles,
    "rings": _rings,
    "spirals": _spirals,
    "pinwheel": _pinwheel,
    "checkerboard": _checkerboard,
    "eight_gaussians": _eight_gaussians,
    "gaussian_mixture": _mixture,
}
"""Samplers of (number of points, generator), shape (n, 2), by name."""


def draw(name: str, num: int, seed: int) -> Tensor:
    """Return points of a data set.

    Args:
        name: A key of :data:`DATA_SETS`.
        num: Number of points n.
        seed: Seed.

    Returns:
        Shape (n, 2), float32, all within a few units of the origin.

    Raises:
        ValueError: If no data set has that name.

    Example:
        >>> draw("rings", 5, seed=0).shape
        torch.Size([5, 2])
    """
    if name not in DATA_SETS:
        raise ValueError(f"Unknown data set {name!r}; choose one of {sorted(DATA_SETS)}.")
    # The name enters the seed: sets of one seed are not the same random numbers in disguise.
    rng = np.random.default_rng([seed, *name.encode()])
    return torch.from_numpy(np.asarray(DATA_SETS[name](num, rng), dtype=np.float32))


class Sizes(NamedTuple):
    """Samples to train on, and as many to choose with; samples to report; epochs."""

    num_train: int = 100
    num_test: int = 5000
    epochs: int = 30


def split(
    name: str, seed: int, *, num_train: int, num_test: int, num_validation: int | None = None
) -> Split:
    """Return independent samples of a data set to train on, to choose with and to report.

    There are as many to choose with as to train on, if nothing else is said. Test samples are those
    of the data set, whatever the seed: runs of several seeds differ in what they saw, not in what
    they are judged on.
    """
    return Split(
        draw(name, num_train, 2 * seed),
        draw(name, num_train if num_validation is None else num_validation, 2 * seed + 1),
        draw(name, num_test, 10**6),
    )
