"""Data sets: shapes, seeds, and the density of the mixture."""

import numpy as np
import pytest
import torch

from sbi_jeffreys.paper.data import DATA_SETS, draw, gaussian_mixture, split


@pytest.mark.parametrize("name", DATA_SETS)
def test_draws(name):
    points = draw(name, 501, seed=3)
    assert points.shape == (501, 2)
    assert points.dtype == torch.float32
    assert points.isfinite().all()
    assert points.abs().max() < 4
    assert torch.equal(points, draw(name, 501, seed=3))
    assert not torch.equal(points, draw(name, 501, seed=4))
    # A permutation, but no duplicate: samples are independent.
    assert len(points.unique(dim=0)) == 501


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name in DATA_SETS:
        draw(name, 10, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_radii_of_rings():
    radius = draw("rings", 4000, seed=0).norm(dim=1)
    # Four rings a quarter apart, with a standard deviation of 0.03: beyond four of it is nothing.
    off = (4 * radius - (4 * radius).round()).abs() / 4
    assert off.max() < 0.125
    assert off.square().mean().sqrt() == pytest.approx(0.03, rel=0.1)
    assert set((4 * radius).round().int().tolist()) == {1, 2, 3, 4}


def test_checkerboard_has_the_colours_of_one():
    points = draw("checkerboard", 1000, seed=0)
    cell = (2 * points + 2).floor().int()
    assert (cell >= 0).all()
    assert (cell < 4).all()
    assert (cell.sum(dim=1) % 2 == 0).all()


def test_mixture_has_the_covariance_it_says():
    mixture = gaussian_mixture(radius=1.0, across=0.1, along=0.3)
    # By symmetry: E[x x'] is a multiple of one, (radius² + across² + along²) / 2.
    assert torch.allclose(mixture.mean, torch.zeros(2), atol=1e-6)
    expected = (1 + 0.01 + 0.09) / 2
    assert torch.allclose(mixture.variance, torch.full((2,), expected), atol=1e-5)


def test_draws_of_the_mixture_have_its_density():
    # Mean log density of 4,000 draws against quadrature; standard error 0.8 / sqrt(4000) = 0.013.
    mixture = gaussian_mixture()
    side = torch.linspace(-2.4, 2.4, 400)
    points = torch.cartesian_prod(side, side)
    log_prob = mixture.log_prob(points)
    cell = (side[1] - side[0]) ** 2
    entropy = -(log_prob.exp() * log_prob).sum() * cell
    mean = mixture.log_prob(draw("gaussian_mixture", 4000, seed=1)).mean()
    assert abs(mean + entropy) < 0.05


def test_split_shares_its_test_data_and_nothing_else():
    one, other = (
        split("circles", seed, num_train=30, num_validation=30, num_test=40) for seed in (0, 1)
    )
    assert torch.equal(one.test, other.test)
    parts = [one.train, one.validation, other.train, other.validation, one.test[:30]]
    for i, part in enumerate(parts):
        assert not any(torch.equal(part, rest) for rest in parts[i + 1 :])


def test_unknown_name():
    with pytest.raises(ValueError, match=r"Unknown data set 'moons'; choose one of \['checker"):
        draw("moons", 1, seed=0)
