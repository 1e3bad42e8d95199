"""Batches: every row once, and the same rows at the head."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sbi_jeffreys.training.batches import Data, LoaderData, PerRow, through_loaders


def simulate(num):
    theta = torch.randn(num, 2)
    return theta, theta + 0.2 * torch.randn(num, 2)


def as_data(theta, x):
    return Data(theta, x, torch.ones(len(theta), 1), torch.arange(len(theta)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("num", "size"), [(10, 3), (100, 30), (100, 100), (199, 100), (5, 200), (1, 1), (7, 1)]
)
def test_batches_cover_all_rows_once(num, size, shuffle):
    theta = torch.arange(2 * num, dtype=torch.float32)[:, None]
    rows = torch.arange(0, 2 * num, 2)  # half of what is stored
    data = Data(theta, 10 * theta, 100 * theta, rows)
    batches = list(data.batches(size, "cpu", shuffle=shuffle))
    for batch in batches:
        assert torch.equal(batch[1], 10 * batch[0])
        assert torch.equal(batch[2], 100 * batch[0])
    seen = torch.cat([batch[0][:, 0] for batch in batches]).long()
    assert torch.equal(seen.sort().values, rows)
    if not shuffle:
        assert torch.equal(seen, rows)
    sizes = [len(batch[0]) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, num)
    assert len(sizes) == max(1, num // size)


def test_batches_without_being_told_how():
    """As a loader of torch's: another order at every pass, and their number is the length."""
    theta, x = simulate(25)
    data = Data(theta, x, torch.ones(25, 1), torch.arange(25), batch_size=10)
    passes = [list(data) for _ in range(2)]
    for batches in passes:
        assert len(batches) == len(data) == 2
        assert all(len(theta) == len(x) == len(mask) >= 10 for theta, x, mask in batches)
    first, second = (torch.cat([batch[0] for batch in batches]) for batches in passes)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, theta.sort(dim=0).values)


def test_shuffling_gives_another_order_every_time():
    theta, x = simulate(100)
    data = as_data(theta, x)
    first, second = (next(data.batches(100, "cpu", shuffle=True))[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


@pytest.mark.parametrize(("stored", "num"), [(64, 32), (10, 32), (33, 1)])
def test_head(stored, num):
    theta = torch.arange(stored, dtype=torch.float32)[:, None]
    rows, x = as_data(theta, 10 * theta).head(num, "cpu")
    assert torch.equal(rows, theta[:num])
    assert torch.equal(x, 10 * rows)


def test_loader_data():
    theta, x = simulate(25)
    masks = torch.ones(25, 1)
    data = LoaderData(DataLoader(TensorDataset(theta, x, masks), batch_size=10))
    assert len(data) == len(list(data)) == 3
    batches = list(data.batches(3, "cpu", shuffle=True))
    assert [len(batch[0]) for batch in batches] == [10, 10, 5]
    assert torch.equal(torch.cat([batch[1] for batch in batches]), x)
    some_theta, some_x = data.head(4, "cpu")
    assert torch.equal(some_theta, theta[:4])
    assert torch.equal(some_x, x[:4])


def test_held_out_rows_of_a_loader_that_shuffles_come_in_one_order():
    rows = TensorDataset(*simulate(20), torch.ones(20, 1))
    loader = DataLoader(rows, batch_size=5, shuffle=True)
    _, held_out = through_loaders((loader, loader), (20, 20), {})
    first, second = (
        torch.cat([batch[0] for batch in held_out.batches(5, "cpu", shuffle=False)])
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_head_of_a_loader_with_fewer_rows_is_the_same_each_time():
    loader = DataLoader(TensorDataset(*simulate(10), torch.ones(10, 1)), batch_size=4, shuffle=True)
    data = LoaderData(loader)
    first = data.head(32, "cpu")
    before = torch.get_rng_state()
    again = data.head(32, "cpu")
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_without_a_batch_is_refused():
    rows = TensorDataset(*simulate(4), torch.ones(4, 1))
    loaders = DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match="no batch of 4 simulations to train on and 4 to validate"):
        through_loaders(loaders, (4, 4), {"batch_size": 5})


def test_a_kernel_may_return_a_number():
    assert PerRow(lambda x: 0.5)(torch.zeros(3, 1)).tolist() == [0.5] * 3


def test_the_head_of_a_loader_that_shuffles_is_the_same_each_time():
    rows = TensorDataset(torch.arange(50.0)[:, None], torch.arange(50.0)[:, None])
    data = LoaderData(DataLoader(rows, batch_size=10, shuffle=True))
    assert torch.equal(data.head(20, "cpu")[0], data.head(20, "cpu")[0])


def test_the_head_of_a_loader_grows_with_what_is_asked_for():
    theta, x = simulate(10)
    data = LoaderData(DataLoader(TensorDataset(theta, x), batch_size=3))
    for num in (2, 5, 3, 10, 20):
        head = data.head(num, "cpu")
        assert torch.equal(head[0], theta[:num])
        assert torch.equal(head[1], x[:num])
