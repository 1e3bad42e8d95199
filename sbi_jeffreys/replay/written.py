"""How the results of an operation are written to memory that is there.

Most operations of torch have a variant that does, ``out=``. Some of these make new memory all the
same and copy from it, which takes several times as long as what they compute: large memory comes
from the system each time. For those that a training takes often, there is a way without.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operations import Operation
from .recorder import tensors_in

__all__ = ["Done", "written_to"]

_aten = torch.ops.aten
# Operations that make memory, and what fills it in place.
_FILLED = {
    _aten.zeros.default: _aten.zero_.default,
    _aten.zeros_like.default: _aten.zero_.default,
    _aten.new_zeros.default: _aten.zero_.default,
    _aten.rand.default: _aten.uniform_.default,
    _aten.rand_like.default: _aten.uniform_.default,
    _aten.randn.default: _aten.normal_.default,
    _aten.randn_like.default: _aten.normal_.default,
}
# Operations with a number in the place of a tensor, and those that take a tensor there.
_WITH_NUMBER = {
    _aten.mul.Scalar: _aten.mul.Tensor,
    _aten.div.Scalar: _aten.div.Tensor,
    **{
        each: each
        for name in ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")
        for each in [getattr(_aten, name).Tensor]
    },
}
# Numbers that may be rounded to a tensor's type: of other types some operations compute in a wider
# one. Truth values are integers to Python.
_UNWIDENED = {torch.float32: int | float, torch.float64: int | float, torch.int64: int}


class Done(NamedTuple):
    """A call: of which operation, with what, and where its results are copied, if they are."""

    operation: Operation
    args: Any
    kwargs: Any
    where: list[Tensor | None] | None = None

    def do(self) -> None:
        """Do it.

        Raises:
            RuntimeError: If a result has another shape than the memory that it is copied to.
        """
        # Without the method of Python's that an operation has around it.
        result = self.operation._op(*self.args, **self.kwargs)
        if self.where is None:
            return
        for tensor, value in zip(self.where, tensors_in(result), strict=True):
            if tensor is None:
                continue
            if tensor.shape != value.shape:
                raise RuntimeError(f"{self.operation}: the shape of a result depends on values.")
            tensor.copy_(value)


def written_to(
    where: list[Tensor | None], operation: Operation, args: Any, kwargs: Any
) -> list[Done]:
    """Return the calls that do what an operation does, with its results in given memory.

    Args:
        where: Tensors to write to, of the shapes of the results, ``None`` for results in memory
            that the operation is given.
        operation: Of torch, on a CPU.
        args: Its arguments.
        kwargs: Those by name.
    """
    operation, args = _without_number(operation, args)
    into = [tensor for tensor in where if tensor is not None]
    if not into:
        return [_done(operation, *args, **kwargs)]
    if operation in _FILLED:
        return [_done(_FILLED[operation], into[0])]
    if operation in _WITHOUT_NEW_MEMORY:
        return _WITHOUT_NEW_MEMORY[operation](into[0], *args)
    outs = _outs(operation)
    if outs is not None and len(outs.names) == len(into) == len(where):
        return [_done(outs.operation, *args, **kwargs, **dict(zip(outs.names, into, strict=True)))]
    return [Done(operation, args, kwargs, where)]


def _done(operation: Operation, *args: Any, **kwargs: Any) -> Done:
    return Done(operation, args, kwargs)


def _without_number(operation: Operation, args: Any) -> tuple[Operation, Any]:
    """Make a tensor of the number in an operation's second place, as torch would in each call."""
    if operation not in _WITH_NUMBER or len(args) < 2:
        return operation, args
    first, second, *rest = args
    numbers = _UNWIDENED.get(first.dtype)
    if numbers is not None and isinstance(second, numbers):
        return _WITH_NUMBER[operation], (first, torch.tensor(second, dtype=first.dtype), *rest)
    return operation, args


def _relu(out: Tensor, x: Tensor) -> list[Done]:
    return [_done(_aten.clamp_min.out, x, 0, out=out)]


def _copy(out: Tensor, x: Tensor, *_: Any) -> list[Done]:
    return [_done(_aten.copy_.default, out, x)]


def _in_zeros(
    part: Callable[..., Tensor], out: Tensor, x: Tensor, sizes: Any, *which: Any
) -> list[Done]:
    return [
        _done(_aten.zero_.default, out),
        _done(_aten.copy_.default, part(out, *which), x),
    ]


def _index_put(out: Tensor, x: Tensor, *rest: Any) -> list[Done]:
    return [_done(_aten.copy_.default, out, x), _done(_aten.index_put_.default, out, *rest)]


_WITHOUT_NEW_MEMORY: dict[Operation, Callable[..., list[Done]]] = {
    _aten.relu.default: _relu,
    _aten.clone.default: _copy,
    _aten._to_copy.default: _copy,
    _aten.slice_backward.default: functools.partial(_in_zeros, _aten.slice.Tensor),
    _aten.select_backward.default: functools.partial(_in_zeros, _aten.select.int),
    _aten.index_put.default: _index_put,
}


class _Outs(NamedTuple):
    """An operation whose results go to memory that is given by name."""

    operation: Operation
    names: list[str]


@functools.cache
def _outs(operation: Operation) -> _Outs | None:
    """Return the one that does the same as an operation that makes new memory, if there is one."""
    given = [(a.name, str(a.type)) for a in operation._schema.arguments]
    for name in operation.overloadpacket.overloads():
        other = getattr(operation.overloadpacket, name)
        names = [a.name for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        single = all(str(a.type) == "Tensor" for a in other._schema.arguments if a.is_out)
        if names and single and rest == given:
            return _Outs(other, names)
    return None
