"""What a flow was trained on is never what it is judged by."""

import pytest
import torch
from trainers import PRIOR, make

from sbi_jeffreys.training.split import NO_ROWS, Split, check_enough, split, stored_rows
from sbi_jeffreys.training.training import Training

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


def simulations(num):
    theta = PRIOR.sample((num,))
    return theta, theta + 0.2 * torch.randn(num, 2)


def parts_of(rows, places):
    """Return the numbers of rows to train on and to hold out, as sets."""
    return tuple(set(rows[each].tolist()) for each in places)


def test_a_new_flow_splits_all_by_one_permutation():
    torch.manual_seed(3)
    order = torch.randperm(50)
    torch.manual_seed(3)
    places, now = split(torch.arange(50), 0.1, NO_ROWS)
    assert torch.equal(torch.cat(places), order)
    assert list(map(len, places)) == [45, 5]
    assert all(map(torch.equal, now, places))


def test_rows_stay_what_they_were_and_new_ones_are_split():
    rows = torch.arange(100)
    _, first = split(rows, 0.1, NO_ROWS)
    more = torch.arange(160)
    places, now = split(more, 0.1, first)
    train, held_out = parts_of(more, places)
    assert train >= set(first.train.tolist())
    assert held_out >= set(first.held_out.tolist())
    assert len(held_out) == 10 + 6
    assert train.isdisjoint(held_out)
    assert train | held_out == set(range(160))
    assert parts_of(more, now) == (train, held_out)
    # Some looks are at the first few: they see old and new.
    assert (places.held_out[:8] >= 100).any()
    assert not torch.equal(places.train, places.train.sort().values)


def test_rows_that_are_left_out_stay_what_they_were():
    _, first = split(torch.arange(100), 0.1, NO_ROWS)
    later = torch.arange(100, 140)
    places, now = split(later, 0.1, first)
    assert list(map(len, places)) == [36, 4]
    assert set(now.held_out.tolist()) > set(first.held_out.tolist())
    everything = torch.arange(140)
    places, _ = split(everything, 0.1, now)
    assert parts_of(everything, places) == parts_of(everything, now)


def test_what_is_split_anew_leaves_the_others():
    """Where nothing of a later round was held out."""
    before = Split(torch.arange(18), torch.arange(18, 20))
    _, before = split(torch.arange(20, 30), None, before)
    places, now = split(torch.arange(20, 30), 0.1, before)
    assert list(map(len, places)) == [9, 1]
    assert list(map(len, now)) == [27, 3]
    assert set(now.train.tolist()) > set(range(18))


def test_all_are_trained_on_where_others_are_held_out():
    _, first = split(torch.arange(20), 0.1, NO_ROWS)
    places, now = split(torch.arange(20), None, first)
    assert sorted(places.train.tolist()) == list(range(20))
    assert [len(each) for each in (places.held_out, now.train, now.held_out)] == [0, 20, 0]
    # What is left to be judged by was trained on: then all are split anew.
    places, now = split(torch.arange(20), 0.1, now)
    assert list(map(len, places)) == [18, 2]
    assert list(map(len, now)) == [18, 2]


def test_new_rows_that_come_one_at_a_time_are_trained_on():
    """A tenth of all is held out, not of each portion, of which that would be one in one."""
    _, now = split(torch.arange(100), 0.1, NO_ROWS)
    for num in range(101, 141):
        before = now
        _, now = split(torch.arange(num), 0.1, before)
        assert set(now.train.tolist()) >= set(before.train.tolist())
        assert set(now.held_out.tolist()) >= set(before.held_out.tolist())
    assert list(map(len, now)) == [126, 14]


def test_a_single_new_row():
    before = Split(torch.arange(18), torch.arange(18, 20))
    places, _ = split(torch.arange(21), 0.1, before)
    assert len(places.train) + len(places.held_out) == 21
    assert set(places.train.tolist()) >= set(range(18))


@pytest.mark.parametrize(
    ("num", "fraction", "num_train"), [(100, 0.1, 90), (3, 0.1, 2), (3, None, 3), (2, None, 2)]
)
def test_number_to_train_on(num, fraction, num_train):
    check_enough(num, fraction)
    places, _ = split(torch.arange(num), fraction, NO_ROWS)
    assert len(places.train) == num_train


@pytest.mark.parametrize(("num", "fraction"), [(2, 0.1), (1, None), (10, 0.9), (10, 0.0)])
def test_too_few_to_train_on_or_to_hold_out(num, fraction):
    with pytest.raises(ValueError, match=f"{num} simulations are too few"):
        check_enough(num, fraction)


def test_numbers_of_stored_rows():
    assert stored_rows([3, 2, 1], [0, 1, 0], 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert stored_rows([3, 2, 1], [0, 1, 0], 1).tolist() == [3, 4]


@pytest.mark.parametrize("loaders", [None, {"num_workers": 0}])
def test_more_simulations(loaders):
    trainer = make().append_simulations(*simulations(60))
    options = {"max_num_epochs": 1, "training_batch_size": 3, "dataloader_kwargs": loaders}
    trainer.train(**options)
    seen, judges = set(trainer.train_indices.tolist()), set(trainer.val_indices.tolist())
    trainer.append_simulations(*simulations(40)).train(force_first_round_loss=True, **options)
    assert seen.isdisjoint(trainer.val_indices.tolist())
    assert judges < set(trainer.val_indices.tolist())
    assert len(trainer.val_indices) == 10
    # The same simulations once more.
    before = set(trainer.val_indices.tolist())
    trainer.train(force_first_round_loss=True, **options)
    assert set(trainer.val_indices.tolist()) == before
    # A new flow has seen none.
    trainer.train(force_first_round_loss=True, retrain_from_scratch=True, **options)
    assert set(trainer.val_indices.tolist()) != before


def test_later_rounds():
    trainer, proposal, seen = make(), PRIOR, set()
    for round_ in range(3):
        theta = PRIOR.sample((40,))
        x = theta + 0.2 * torch.randn(40, 2)
        trainer.append_simulations(theta, x, proposal=proposal)
        trainer.train(max_num_epochs=1, training_batch_size=20)
        assert seen.isdisjoint(trainer.val_indices.tolist())
        assert len(trainer.val_indices) == 4 * (round_ + 1)
        seen |= set(trainer.train_indices.tolist())
        proposal = trainer.build_posterior().set_default_x(torch.zeros(2))
    # Without the first round: numbers count from the second.
    held_out = set(trainer._split.held_out.tolist())
    trainer.append_simulations(*simulations(40), proposal=proposal)
    trainer.train(max_num_epochs=1, training_batch_size=20, discard_prior_samples=True)
    now = {40 + row for row in trainer.val_indices.tolist()}
    assert {row for row in held_out if row >= 40} < now
    assert seen.isdisjoint(now)


def test_a_call_that_trained_nothing_leaves_the_split(monkeypatch):
    trainer = make().append_simulations(*simulations(60))
    trainer.train(max_num_epochs=1)
    before = trainer._split
    trainer.append_simulations(*simulations(40))

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(max_num_epochs=1, force_first_round_loss=True, retrain_from_scratch=True)
    assert trainer._split is before
