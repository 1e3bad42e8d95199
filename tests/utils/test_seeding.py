"""Seeds: the same numbers every time, and nobody else's are moved."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import get_task
from trainers import THETA, X, make

from sbi_jeffreys.utils.seeding import (
    derive_seed,
    forked,
    generator_states,
    of_round,
    seeded,
)


def test_a_seed_gives_its_own_numbers_and_leaves_the_generator():
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)


def under_a_seed():
    with seeded(8):
        return torch.rand(3)


def make_a_trainer():
    make("coupling_nsf").append_simulations(THETA, X)


@pytest.mark.parametrize("draw", [under_a_seed, make_a_trainer])
def test_threads_wait_for_each_other(draw):
    """All draw from one generator."""
    entered, drawn = threading.Event(), []

    def run():
        entered.set()
        drawn.append(draw())

    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(2)
        other = threading.Thread(target=run)
        other.start()
        assert entered.wait(10)
        # Long enough for a thread that does not wait.
        other.join(0.2)
        assert not drawn
        second = torch.rand(1)
    other.join(10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(torch.cat((first, second)), torch.rand(3))
    if draw is under_a_seed:
        torch.manual_seed(8)
        assert torch.equal(drawn[0], torch.rand(3))


def test_a_state_goes_on_where_it_stopped():
    with seeded(7):
        torch.rand(3)
        states = generator_states()
        rest = torch.rand(3)
    with seeded(7, states=states):
        assert torch.equal(torch.rand(3), rest)


def test_without_a_seed_the_generator_is_torchs_whatever_the_state():
    with seeded(1):
        states = generator_states()
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(None, states=states):
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("own", [forked, lambda: seeded(7)])
def test_the_generator_is_put_back_after_an_error(own):
    def fail():
        torch.rand(3)
        raise ValueError("no")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="no"), own():
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_runs_on_the_cpu_seeds_no_gpu(monkeypatch):
    """Nobody would put its generators back."""

    def refuse(seed):
        raise AssertionError("a GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    with pytest.raises(AssertionError, match="a GPU"):
        torch.manual_seed(0)
    with seeded(7):
        torch.rand(3)
    get_task("two_moons").simulate(3)


def test_the_device_has_its_own_generator(monkeypatch):
    """A GPU, played by what is asked of it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda d: asked.append(("get", d)) or "state")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, d: asked.append(("set", s, d)))
    monkeypatch.setattr(torch.cuda, "device", lambda d: asked.append(("on", d)) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: asked.append(("seed", seed)))
    device = torch.device("cuda:1")
    with seeded(7, "cuda:1"):
        assert asked == [("get", device), ("on", device), ("seed", 7)]
    assert asked[3:] == [("set", "state", "cuda:1")]


def numbers():
    return np.random.rand(3).tolist()  # noqa: NPY002


def test_numpys_generator_is_seeded_and_put_back():
    np.random.seed(3)  # noqa: NPY002
    expected = numbers()
    np.random.seed(3)  # noqa: NPY002
    with seeded(7):
        first = numbers()
    with forked():
        numbers()
    assert numbers() == expected
    with seeded(7):
        assert numbers() == first
        states = generator_states()
        rest = numbers()
    with seeded(8, states=states):
        assert numbers() == rest


@pytest.mark.parametrize("seed", [2**32 + 5, 2**63 - 1, -1])
def test_large_and_negative_seeds_are_seeds(seed):
    drawn = []
    for _ in range(2):
        with seeded(seed):
            drawn.append((torch.rand(2).tolist(), numbers()))
    assert drawn[0] == drawn[1]


def test_later_rounds_have_seeds_of_their_own():
    # Consecutive seeds are what people give to repetitions.
    seeds = [of_round(seed, number) for seed in range(10) for number in range(4)]
    assert len(set(seeds)) == 40
    assert [of_round(seed, 0) for seed in (-3, 0, 2**64 - 1)] == [-3, 0, 2**64 - 1]
    with seeded(max(seeds)):
        torch.rand(1)


def test_seeds_are_fixed_and_tell_purposes_apart():
    # A value that changes would change every record of the past.
    assert derive_seed("simulations", "slcp", 1000, 0) == 3134658018
    parts = [("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 1, 0)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
