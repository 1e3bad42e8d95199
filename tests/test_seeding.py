"""Seeds: the same numbers every time, and nobody else's are moved."""

import pytest
import torch

from sbi_jeffreys.seeding import forked, seeded


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_seed_gives_its_own_numbers_and_leaves_the_generator():
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)


def test_a_state_goes_on_where_it_stopped():
    with seeded(7):
        torch.rand(3)
        state = torch.get_rng_state()
        rest = torch.rand(3)
    with seeded(7, state=state):
        assert torch.equal(torch.rand(3), rest)


def test_without_a_seed_the_generator_is_torchs_whatever_the_state():
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(None, state=torch.Generator().manual_seed(1).get_state()):
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
