"""What is recorded on a CPU is done again as it was, wherever its memory came from."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sbi_jeffreys.replay import cpu
from sbi_jeffreys.replay.cpu import Pool, Repeated, record
from sbi_jeffreys.replay.recorder import Recorder
from sbi_jeffreys.utils.seeding import forked


def assert_done_again(function, *inputs: Tensor, pool: Pool | None = None) -> None:
    """Compare results for other inputs, under the same random numbers, to the bit, twice."""
    recording, results = record(lambda: function(*inputs), pool or Pool())
    for seed in (1, 2):
        for tensor in inputs:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor))
        torch.manual_seed(seed)
        recording.replay()
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        expected = function(*inputs)
        assert torch.equal(torch.get_rng_state(), after)
        for found, value in zip(results, expected, strict=True):
            assert torch.equal(found, value)
            assert (found.shape, found.stride(), found.dtype) == (
                value.shape,
                value.stride(),
                value.dtype,
            )


ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
FUNCTIONS = {
    "elementwise": lambda x: [(x * 2 + 1).exp().sub(x).where(x > 0, x.neg())],
    "views": lambda x: [(x.mT[1:].flip(0).reshape(-1)[::2] + 1).view(-1, 1).expand(-1, 3).sum(1)],
    "in place": lambda x: [x.clone().mul_(2).add_(x).T.contiguous().relu_()],
    "in place on views": lambda x: [_set_part(torch.zeros_like(x), x)],
    "constants": lambda x: [x + torch.arange(6).view(2, 3) + torch.tensor([1.0, 2.0, 3.0])],
    "filled constants": lambda x: [_set_part(torch.full_like(x, 7.0), x), torch.ones(3) * x],
    "numbers": lambda x: [
        torch.tensor([1.0, 2.0, 3.0]).add_(x[0]),
        _set_part(torch.tensor(ROWS), x),
    ],
    "kept constants": lambda x: [torch.zeros(2), torch.arange(3), x.new_full((2,), 3.0)],
    "random": lambda x: [
        torch.rand(3) + torch.randn_like(x),
        F.dropout(x, 0.5),
        torch.randperm(5),
        torch.empty(4).exponential_(),
        torch.bernoulli(x.sigmoid()),
        torch.normal(x, 1.0),
    ],
    "several results": lambda x: [*x.sort(), *torch.std_mean(x), *x.unbind(0), *x.split(2, 1)],
    "nothing kept": lambda x: [x.sum(), (x * torch.nan).sum().nan_to_num()],
    "indices": lambda x: [
        x[:, torch.tensor([2, 0])],
        x.gather(1, x.argsort(1)),
        x.masked_fill(x > 0, 0),
    ],
    "products": lambda x: [x @ x.mT, torch.linalg.solve(x @ x.mT + 9 * torch.eye(2), x)],
    "lists": lambda x: [*torch._foreach_mul([x, x + 1], 2), *torch._foreach_norm([x])],
    "types": lambda x: [x.double().cumsum(0), x.to(torch.int64), x > 0, torch.empty(0)],
}


def _set_part(into: Tensor, x: Tensor) -> Tensor:
    into[:, 1:] = x[:, :2]
    into[0] += 1
    return into


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert_done_again(FUNCTIONS[name], torch.randn(2, 3))


class Doubled(torch.autograd.Function):
    """With a gradient that is not its own, so that autograd's would be seen."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 3 + ctx.saved_tensors[0]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2)),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ELU(), nn.Flatten()),
        nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU()),
    ],
    ids=["perceptron", "convolution", "dropout"],
)
def test_gradients(net):
    def function(x: Tensor) -> list[Tensor]:
        net.zero_grad(set_to_none=True)
        loss = (Doubled.apply(net(x)) ** 2).logsumexp(1).mean()
        loss.backward()
        return [loss.detach(), *(p.grad for p in net.parameters())]

    assert_done_again(function, torch.randn(5, 3))


def test_what_was_there_stays_until_it_is_replayed():
    """Also random numbers, running statistics and an optimizer's moments."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.randn(6, 3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        net(x + torch.randn_like(x)).square().sum().backward()
        optimizer.step()

    def state() -> list[Tensor]:
        moments = [t for s in optimizer.state.values() for t in s.values()]
        return [t.detach() for t in (*net.state_dict().values(), *moments)]

    step()
    before, random = [t.clone() for t in state()], torch.get_rng_state()
    recording, _ = record(step, Pool())
    assert all(map(torch.equal, before, state()))
    assert torch.equal(random, torch.get_rng_state())
    recording.replay()
    replayed = [t.clone() for t in state()]
    for tensor, value in zip(state(), before, strict=True):
        tensor.copy_(value)
    torch.set_rng_state(random)
    step()
    assert all(map(torch.equal, replayed, state()))


def test_what_is_checked_is_checked_again():
    x = torch.eye(2)
    recording, _ = record(lambda: [torch.linalg.cholesky(x)], Pool())
    x.neg_()
    with pytest.raises(RuntimeError, match=r"^linalg\.cholesky: .* not positive-definite"):
        recording.replay()


def test_memory_is_used_again_and_shared():
    x = torch.randn(1000)

    def many(x: Tensor) -> list[Tensor]:
        y = x
        for _ in range(50):
            y = (y + 1).sin()
        return [y]

    def size(pool: Pool) -> int:
        return sum(s.nbytes() for storages in pool._all.values() for s in storages)

    pool = Pool()
    assert_done_again(many, x, pool=pool)
    assert size(pool) <= 3 * x.nbytes
    before = size(pool)
    assert_done_again(many, x, pool=pool)
    assert size(pool) == before


def test_results_of_one_survive_the_replay_of_another():
    x, pool = torch.ones(4), Pool()
    one, (first,) = record(lambda: [(x + 1) * 2], pool)
    other, (second,) = record(lambda: [(first + 1) * 3], pool)
    one.replay()
    other.replay()
    one.replay()
    assert (first.tolist(), second.tolist()) == ([4.0] * 4, [15.0] * 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: 1 if torch.equal(x, x) else 0,
        lambda x: 1 if (x > 0).any() else 0,
        lambda x: x.clone().resize_(2),
        lambda x: torch.add(x, 1, out=torch.empty(0)),
        lambda x: torch.rand(2, generator=torch.Generator()),
        lambda x: x.to("meta"),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: x.tolist(),
        lambda x: x.clone().t_(),
        lambda x: torch.view_as_real(torch.view_as_complex(x[:, :2].contiguous()).conj() * 1j),
    ],
)
def test_what_depends_on_values_is_refused(function):
    x = torch.randn(2, 3)
    before = x.clone()

    def changed() -> None:
        x.add_(1)
        function(x)

    with pytest.raises(RuntimeError, match="cannot be recorded"):
        record(changed, Pool())
    assert torch.equal(x, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(error):
    x, random = torch.ones(3), torch.get_rng_state()

    def fail() -> None:
        x.normal_()
        raise error

    with pytest.raises(error):
        record(fail, Pool())
    assert x.tolist() == [1.0] * 3
    assert torch.equal(random, torch.get_rng_state())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_other_threads_are_not_recorded():
    started, done = threading.Event(), threading.Event()
    y = torch.zeros(3)

    def other() -> None:
        started.wait()
        y.add_(1)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def function() -> list[Tensor]:
        started.set()
        done.wait()
        return [torch.ones(2) + 1]

    recording, _ = record(function, Pool())
    thread.join()
    recording.replay()
    assert y.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.T.reshape(-1) * 2,
        lambda x: x.T.contiguous() * 2,
        lambda x: x.double() * 2,
    ],
    ids=["reshape", "contiguous", "double"],
)
def test_what_may_be_a_view_and_is_none_in_inference_mode(function):
    with torch.inference_mode():
        x = torch.randn(3, 4)
        recording, result = record(lambda: (function(x),), Pool())
        x.normal_()
        recording.replay()
        assert torch.equal(result[0], function(x))


def test_views_and_what_profilers_are_told_are_not_calls():
    x = torch.randn(3, 4)
    with Recorder() as recorder, torch.profiler.record_function("views"):
        x.T.reshape(2, 6).unsqueeze(0)[..., 1].expand(3, 2).detach()
        x.view(-1).exp()
    assert [call.operation for call in recorder.calls] == [
        torch.ops.aten.clone.default,
        torch.ops.aten.exp.default,
    ]


def test_what_is_repeated_is_recorded_after_the_first_calls():
    calls, x = [], torch.zeros(3)

    def function() -> tuple[Tensor, ...]:
        calls.append(x.clone())
        return x + 1, torch.rand(2)

    repeated, never = Repeated(function, 2), Repeated(function, None)
    for value in range(6):
        x.fill_(value)
        with forked():
            expected = never()
        found = repeated()
        assert all(map(torch.equal, found, expected))
    # The third call is recorded, and done once more, to be compared with.
    assert len(calls) == 6 + 4
    last = found
    x.fill_(9.0)
    repeated()
    assert all(map(torch.equal, found, last))
    assert found[0].tolist() == [6.0] * 3


def test_what_depends_on_values_is_repeated_as_it_is():
    x = torch.ones(3)
    repeated = Repeated(lambda: (x + 1 if x.sum().item() > 0 else x,), 1)
    assert [repeated()[0][0].item() for _ in range(3)] == [2.0] * 3
    x.neg_()
    assert repeated()[0].tolist() == [-1.0] * 3


@pytest.mark.parametrize("wrong", ["result", "state"])
def test_a_recording_that_does_something_else_is_not_used(monkeypatch, wrong):
    state, calls = torch.zeros(2), []

    def function() -> tuple[Tensor, ...]:
        calls.append(state.clone())
        return (state.add_(1).sum(),)

    def replay(self: cpu.Recording) -> None:
        state.add_(7.0 if wrong == "state" else 1.0)
        # The sum of the state, or not.
        repeated._results[0].fill_(2.0 if wrong == "state" else 3.0)

    monkeypatch.setattr(cpu.Recording, "replay", replay)
    repeated = Repeated(function, 0)
    assert [repeated()[0].item() for _ in range(3)] == [2.0, 4.0, 6.0]
    assert state.tolist() == [3.0, 3.0]
    # Once to be recorded, and three times for what it returns.
    assert len(calls) == 1 + 3


def test_an_error_of_a_repeated_function_is_its_own():
    def function() -> tuple[Tensor, ...]:
        raise ValueError("of its own")

    repeated = Repeated(function, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match="of its own"):
            repeated()
