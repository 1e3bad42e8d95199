"""Operations write to memory that is there what they would return, and ask for no other."""

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from sbi_jeffreys.replay.recorder import replaced
from sbi_jeffreys.replay.written import written_to

aten = torch.ops.aten
X = torch.tensor([[-1.5, 0.0, 2.5], [float("nan"), -0.0, 0.1]])
COLUMNS = torch.tensor([0, 2])
CASES = {
    "relu": (aten.relu.default, (X,), {}),
    "copy": (aten.clone.default, (X.T,), {"memory_format": torch.contiguous_format}),
    "other type": (aten._to_copy.default, (X,), {"dtype": torch.float64}),
    "slice": (aten.slice_backward.default, (X, [2, 9], 1, 1, 2**63 - 1, 3), {}),
    "select": (aten.select_backward.default, (X[0], [3, 4], 1, 2), {}),
    "put": (aten.index_put.default, (X, [None, COLUMNS], X[:, :2]), {}),
    "add to": (aten.index_put.default, (X, [None, COLUMNS], X[:, :2], True), {}),
    "times": (aten.mul.Scalar, (X, 0.1), {}),
    "over": (aten.div.Scalar, (X, 3), {}),
    "less": (aten.sub.Tensor, (X, 0.7), {"alpha": 3}),
    "in place": (aten.div_.Tensor, (X, 0.3), {}),
    "none of these": (aten.exp.default, (X,), {}),
    "two results": (aten.sort.default, (X,), {}),
    "a list": (aten._foreach_norm.Scalar, ([X, X[0]],), {}),
    "half precision": (aten.mul.Tensor, (X.bfloat16(), 0.1), {}),
    "integers": (aten.mul.Tensor, (COLUMNS, 3), {}),
    "small integers": (aten.mul.Tensor, (COLUMNS.short(), 3), {}),
}
# torch has no way: lists, what it sorts by, numbers of a type of their own.
WITH_NEW_MEMORY = {"a list", "two results", "half precision", "small integers"}


def done(name: str):
    """Return the calls of a case, where they write to, and what torch returns."""
    operation, args, kwargs = CASES[name]
    args = replaced(Tensor, lambda t: t.clone(memory_format=torch.preserve_format), args)
    expected = operation(*replaced(Tensor, Tensor.clone, args), **kwargs)
    expected = list(expected) if isinstance(expected, tuple | list) else [expected]
    if name == "in place":
        return written_to([None], operation, args, kwargs), [args[0]], expected
    where = [torch.full_like(each, 7) for each in expected]
    return written_to(where, operation, args, kwargs), where, expected


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_torch_to_the_bit(name):
    calls, where, expected = done(name)
    for call in calls:
        call.do()
    for found, value in zip(where, expected, strict=True):
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=0.0, atol=0.0, equal_nan=True)
        if value.is_floating_point():
            assert torch.equal(found.signbit(), value.signbit())


def test_no_memory_is_asked_for():
    calls = [call for name in CASES.keys() - WITH_NEW_MEMORY for call in done(name)[0]]
    with profile(profile_memory=True) as noted:
        for call in calls:
            call.do()
    assert {event.name for event in noted.events() if event.self_cpu_memory_usage} == set()
