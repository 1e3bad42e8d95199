"""Calls are done by torch's interpreter, and give to the bit what Python's calls give."""

import pytest
import torch
from torch import Tensor

from sbi_jeffreys.replay.line import Line
from sbi_jeffreys.replay.recorder import replaced
from sbi_jeffreys.replay.written import Done

aten = torch.ops.aten
X = torch.tensor([[-1.5, 0.0, 2.5], [float("nan"), -0.0, 0.1]])
ROWS = torch.tensor([1, 0, 1])


def out(*like: Tensor) -> list[Tensor]:
    return [torch.full_like(each, 7) for each in like]


def cases() -> dict[str, Done]:
    (same,) = out(X)
    column = torch.zeros(2, 1)
    return {
        "numbers": Done(aten.add.out, (X, X), {"alpha": 3, "out": same}),
        "a truth value, a dimension": Done(aten.sum.IntList_out, (X, [1], True), {"out": column}),
        "no dimension": Done(aten.sum.IntList_out, (X, None), {"out": torch.zeros(())}),
        "any dimension": Done(aten.sum.IntList_out, (X, []), {"out": torch.zeros(())}),
        "an integer for a real number": Done(aten.normal_.default, (same, 1, 2), {}),
        "random": Done(aten.uniform_.default, (same,), {}),
        "a type": Done(
            aten.sum.IntList_out, (X, [0]), {"dtype": torch.float64, "out": X[0].double()}
        ),
        "a format": Done(
            aten.clone.out, (X.T,), {"memory_format": torch.contiguous_format, "out": X.T.clone()}
        ),
        "tensors": Done(aten.cat.out, ([X, X], 1), {"out": torch.zeros(2, 6)}),
        "tensors or none": Done(aten.index.Tensor_out, (X, [None, ROWS]), {"out": same}),
        "in place": Done(aten.mul_.Tensor, (same, X), {}),
        "many in place": Done(aten._foreach_add_.List, (out(X, X[0]), [X, X[1]]), {"alpha": 2}),
        "names": Done(
            aten._fused_adamw_.default,
            ([same], [X.nan_to_num()], [X * 0], [X * 0], [], [torch.ones(())]),
            {
                "lr": 0.1,
                "beta1": 0.9,
                "beta2": 0.99,
                "weight_decay": 0.1,
                "eps": 1e-8,
                "amsgrad": False,
                "maximize": False,
            },
        ),
        "two results": Done(
            aten.sort.values, (X[0],), {"values": X[0].clone(), "indices": ROWS.clone()}
        ),
        "infinity": Done(aten.clamp_min.out, (X, -float("inf")), {"out": same}),
    }


def copied(call: Done) -> Done:
    """Return a call with tensors of its own: the same ones in the same places."""
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        return copies.setdefault(id(tensor), tensor.clone(memory_format=torch.preserve_format))

    return call._replace(
        args=replaced(Tensor, copy, call.args), kwargs=replaced(Tensor, copy, call.kwargs)
    )


def flat(tree) -> list[Tensor]:
    found: list[Tensor] = []
    replaced(Tensor, found.append, tree)
    return found


@pytest.mark.parametrize("name", cases())
def test_the_interpreter_does_what_python_does(name):
    one, other = copied(cases()[name]), copied(cases()[name])
    line = Line([one])
    for _ in range(3):
        torch.manual_seed(0)
        line.run()
        torch.manual_seed(0)
        other.do()
        for found, value in zip(flat(one[1:3]), flat(other[1:3]), strict=True):
            torch.testing.assert_close(found, value, rtol=0.0, atol=0.0, equal_nan=True)
    assert line.parts != [one.do], "it was Python that did it"


def test_the_order_is_that_of_the_calls():
    x = torch.ones(3)
    parts = [
        Done(aten.add_.Tensor, (x, torch.tensor(1.0)), {}),
        Done(aten._foreach_norm.Scalar, ([x],), {}, [torch.zeros(())]),
        Done(aten.mul_.Tensor, (x, x), {}),
        Done(aten.neg.out, (x,), {"out": x}),
    ]
    line = Line(parts)
    assert len(line.parts) == 3, "a graph, a call from Python, a graph"
    line.run()
    assert torch.equal(x, torch.full((3,), -4.0))
    assert torch.equal(parts[1].where[0], torch.tensor([2.0, 2.0, 2.0]).norm())
    line.run()
    assert torch.equal(x, torch.full((3,), -9.0))


def test_what_the_interpreter_takes_for_something_else_is_called_from_python():
    x, where = torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64)
    # An integer in a tensor's place is another variant's to it, which makes memory.
    line = Line([Done(aten.add.out, (x, 1), {"out": where})])
    assert [part.__name__ for part in line.parts] == ["do"]
    line.run()
    assert torch.equal(where, torch.tensor([2, 3]))


def test_no_graph_is_made_of_nothing():
    assert Line([]).parts == []


@pytest.mark.parametrize("missing", ["Graph", "_create_function_from_graph"])
def test_without_an_interpreter_python_does_it(monkeypatch, missing):
    monkeypatch.delattr(torch._C, missing)
    x = torch.zeros(2)
    calls = [Done(aten.add_.Tensor, (x, torch.ones(2)), {}) for _ in range(3)]
    line = Line(calls)
    line.run()
    assert len(line.parts) == 3
    assert torch.equal(x, torch.full((2,), 3.0))


@pytest.mark.parametrize("setting", [True, False])
def test_settings_of_torch_stay(setting):
    before = torch._C._get_graph_executor_optimize()
    x = torch.zeros(2)
    wrong = Line([Done(aten.add_.Tensor, (x, torch.zeros(3)), {})])
    right = Line([Done(aten.add_.Tensor, (x, torch.zeros(2)), {})])
    try:
        torch._C._set_graph_executor_optimize(setting)
        right.run()
        with pytest.raises(RuntimeError, match=r"^The size of tensor a"):
            wrong.run()
        assert torch._C._get_graph_executor_optimize() is setting
    finally:
        torch._C._set_graph_executor_optimize(before)


def test_gradients_are_not_noted():
    weight = torch.ones(2, requires_grad=True)
    line = Line([Done(aten.mul_.Tensor, (weight, torch.full((2,), 2.0)), {})])
    with torch.no_grad():
        line.run()
    assert torch.equal(weight.detach(), torch.full((2,), 2.0))
    assert weight.grad_fn is None
