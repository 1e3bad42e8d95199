"""Calls of torch's operations in a straight line, done by torch's interpreter of graphs.

To call an operation from Python costs three microseconds, whatever it does; from the interpreter
that runs TorchScript it costs less than one. Other threads of Python go on meanwhile. What the
interpreter cannot be told is called from Python, and so is everything where a version of torch does
not have it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .written import Done

__all__ = ["Line"]

# A memory format is a number to the interpreter, which does not take it by its name.
_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}


class Line:
    """Calls that are done one after the other.

    Args:
        calls: All of them, each with the tensors that it works on every time.

    Attributes:
        parts: What does them: a graph as many as it can, Python one at a time.
    """

    def __init__(self, calls: Sequence[Done]) -> None:
        self.parts: list[Callable[[], None]]
        try:
            self.parts = list(_interpreted(calls))
        except Exception:
            # None of it is public, and another version of torch may not have it.
            self.parts = [call.do for call in calls]

    def run(self) -> None:
        """Do all of it."""
        for part in self.parts:
            part()


def _interpreted(calls: Iterable[Done]) -> Iterator[Callable[[], None]]:
    """Yield what does calls one after the other, with as few parts as possible."""
    graph = _Graph()
    for call in calls:
        if graph.add(call):
            continue
        if graph.calls:
            yield graph.compiled()
        yield call.do
        graph = _Graph()
    if graph.calls:
        yield graph.compiled()


class _Graph:
    """A graph of operations whose tensors all come from outside.

    Attributes:
        calls: How many are in it.
    """

    def __init__(self) -> None:
        self.calls = 0
        # Its description to type checkers is not complete.
        self._graph: Any = torch._C.Graph()
        self._tensors: list[Tensor] = []
        self._inputs: dict[int, torch._C.Value] = {}

    def add(self, call: Done) -> bool:
        """Add a call, and return whether that was possible."""
        if call.where is not None:
            return False
        schema = call.operation._schema
        try:
            values = [
                self._value(_given(call, place, argument), argument.type)
                for place, argument in enumerate(schema.arguments)
            ]
            node = self._graph.create(schema.name, values, len(schema.returns))
            # Which of an operation's variants it is, the interpreter finds by the types given.
            possible = node.schema() == str(schema)
        except (RuntimeError, TypeError):
            return False
        if possible:
            for output, returned in zip(node.outputs(), schema.returns, strict=True):
                output.setType(returned.type)
            self._graph.insertNode(node)
            self.calls += 1
        return possible

    def compiled(self) -> Callable[[], None]:
        """Return what does all calls."""
        self._graph.registerOutput(self._graph.insertConstant(None))
        function = torch._C._create_function_from_graph("line", self._graph)
        return partial(_run, function, self._tensors)

    def _value(self, given: Any, kind: Any) -> torch._C.Value:
        """Return an argument as the graph has it.

        Raises:
            TypeError: If it cannot have it.
        """
        if isinstance(given, Tensor):
            return self._input(given)
        if isinstance(given, list | tuple):
            return self._list(given, kind)
        if str(kind) == "float":
            given = float(given)
        return self._graph.insertConstant(_FORMATS.get(given, given))

    def _list(self, given: Iterable[Any], kind: Any) -> torch._C.Value:
        if isinstance(kind, torch._C.OptionalType):
            kind = kind.getElementType()
        of = kind.getElementType()
        values = [self._value(each, of) for each in given]
        node = self._graph.create("prim::ListConstruct", values, 1)
        node.output().setType(torch._C.ListType(of))
        return self._graph.insertNode(node).output()

    def _input(self, tensor: Tensor) -> torch._C.Value:
        if id(tensor) not in self._inputs:
            value = self._graph.addInput()
            value.setType(torch._C.TensorType.get())
            self._inputs[id(tensor)] = value
            self._tensors.append(tensor)
        return self._inputs[id(tensor)]


def _run(function: Callable[..., Any], tensors: list[Tensor]) -> None:
    # As it stands: to look for something better takes longer than what there is to gain. The
    # setting is the thread's.
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        function(*tensors)
    except RuntimeError as error:
        # What the operation had to say stands behind where it stands in the graph.
        raise RuntimeError(str(error).rpartition("RuntimeError: ")[2]) from error
    finally:
        torch._C._set_graph_executor_optimize(before)


def _given(call: Done, place: int, argument: Any) -> Any:
    """Return what a call gives for an argument of its operation, by its place or by its name."""
    if place < len(call.args):
        return call.args[place]
    return call.kwargs.get(argument.name, argument.default_value)
