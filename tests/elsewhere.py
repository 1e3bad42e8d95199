"""A device other than the CPU, played by the CPU: what mixes the two fails as it does on a GPU.

Within :func:`elsewhere`, tensors made on :data:`DEVICE` or moved there hold their values on the CPU
and say that they are elsewhere. An operation is run on the values, so that the numbers are those of
the CPU to the bit; before that it is checked to find all of its tensors in one place. As on a GPU,
a CPU tensor may enter if it has a single value, is copied, or is an index; and values come back by
a copy only (``item``, ``tolist``, ``to``), never by ``numpy``. What a GPU would have to wait for is
noted in :data:`waits`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["ASKING", "DEVICE", "elsewhere", "here", "waits"]

# No operation of this device computes anything, so nothing gets by unseen.
DEVICE = "meta"
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}
# What it returns depends on values: their number, their order, a number of Python's.
ASKING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.unique_dim.default,
}
# Checks values, and returns none of them.
_CHECKING = {torch.ops.aten.normal.Tensor_Tensor}
waits: list[str] = []
_LITERALS = {torch.tensor, torch.as_tensor, torch.asarray}


class _Elsewhere(Tensor):
    """A tensor on the other device, and its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "_Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(DEVICE),
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"elsewhere({self.values})"

    def tolist(self) -> Any:
        waits.append("tolist")
        return self.values.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = _Elsewhere(self.values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)


def here(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, wherever it is."""
    return tensor.values if isinstance(tensor, _Elsewhere) else tensor


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and leave what it returns where it belongs."""
    target = kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    # Such as Python's ranges as indices: torch makes tensors of them that nothing here sees.
    assert not any(here(t).device.type == DEVICE for t in tensors), f"{func}: nobody has the values"
    if target is not None:
        stays = torch.device(target).type == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        # What is changed in place decides where it is.
        first = tensors[:1] if func in _COPIES | _INDEXED else tensors
        stays = any(isinstance(t, _Elsewhere) for t in first)
    if func not in _COPIES:
        _check(func, args, tensors)
    away = any(isinstance(t, _Elsewhere) for t in tensors)
    if away and (func in ASKING | _CHECKING or (func in _COPIES and not stays)):
        waits.append(str(func))
    known = {id(t.values): t for t in tensors if isinstance(t, _Elsewhere)}
    args, kwargs = tree_map_only(_Elsewhere, here, (args, kwargs))
    result = func(*args, **kwargs)
    if not stays:
        return result
    # What was changed in place is returned itself.
    return tree_map_only(
        Tensor, lambda t: known[id(t)] if id(t) in known else _Elsewhere(t), result
    )


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise an error if an operation finds its tensors in two places."""
    away = [isinstance(t, _Elsewhere) for t in tensors]
    if func in _INDEXED:
        # Indices may be on the CPU, but not elsewhere while the rows are on the CPU.
        values = [t for t in tree_leaves((args[0], args[2:])) if isinstance(t, Tensor)]
        away = [isinstance(t, _Elsewhere) for t in values]
        mixed = any(away) and not all(a or t.dim() == 0 for a, t in zip(away, values, strict=True))
        mixed |= not away[0] and any(isinstance(t, _Elsewhere) for t in tensors)
    else:
        mixed = any(away) and not all(a or t.dim() == 0 for a, t in zip(away, tensors, strict=True))
    if mixed:
        places = [(tuple(t.shape), t.device.type) for t in tensors]
        raise RuntimeError(f"{func} found its tensors on two devices: {places}")


class _Operations(TorchDispatchMode):
    """Operations without a tensor from elsewhere, such as those that make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """What makes tensors of Python's numbers takes no part in dispatch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in _LITERALS and device is not None and torch.device(device).type == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class _Generator:
    """A source of random numbers for either device."""

    def __new__(cls, device="cpu", of=torch.Generator) -> torch.Generator:
        return of()


@contextlib.contextmanager
def elsewhere(monkeypatch) -> Iterator[str]:
    """Let there be another device, and return its name."""
    # sbi draws a number to see whether a device is there: from the CPU's generator, here.
    monkeypatch.setattr("sbi.utils.torchutils.check_device", lambda device: None)
    monkeypatch.setattr(torch, "Generator", _Generator)
    with _Operations(), _Literals():
        yield DEVICE
