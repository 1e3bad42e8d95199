"""What is known of operations of torch without their arguments."""

import functools
from typing import NamedTuple

import torch

__all__ = ["EMPTY", "LIKE", "WITH_STATISTICS", "Kind", "Operation", "kind_of", "written_by"]

Operation = torch._ops.OpOverload

_aten = torch.ops.aten
EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
"""Operations that make memory, whatever is in it."""
LIKE = {
    _aten.full_like.default,
    _aten.new_full.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
}
"""Of the tensor that they are given they take the kind alone."""
WITH_STATISTICS = {_aten.native_batch_norm.default}
"""Change running statistics, arguments 3 and 4, which their schema does not say."""


class Kind(NamedTuple):
    """What is known of an operation without its arguments.

    ``view`` is whether it makes views and does nothing else, ``refused`` whether its result depends
    on values, or it moves a tensor to other memory.
    """

    view: bool
    refused: bool
    random: bool


@functools.cache
def kind_of(func: Operation) -> Kind:
    """Return what is known of an operation."""
    tags = set(func.tags)
    asks = tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    moves = torch.Tag.inplace_view in tags or func._schema.name == "aten::set_"
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    # What is made of others, such as reshape, may copy; it comes here in inference mode only.
    composed = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return Kind(
        view=bool(aliases) and not composed and not any(alias.is_write for alias in aliases),
        refused=bool(asks) or moves,
        random=torch.Tag.nondeterministic_seeded in tags,
    )


@functools.cache
def written_by(func: Operation) -> list[tuple[int, str]]:
    """Return positions and names of the arguments that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]
