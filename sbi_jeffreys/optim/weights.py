"""A running mean of weights over the last steps (Polyak averaging), and copies of weights.

What a batch normalisation has counted of its inputs is averaged with the weights: those of the
last few steps are not what averaged weights make of x.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["RunningMean", "copy_of_weights", "moving"]

# Share of the newest weights, in the long run.
_SHARE = 0.02


def moving(module: nn.Module) -> list[Tensor]:
    """Return what training moves: parameters, and means and variances of batch normalisations.

    Parameters that ask for no gradient stay as they are.

    Args:
        module: In training mode, but for the parts whose statistics stay.
    """
    norms = [each for each in module.modules() if isinstance(each, _NormBase) and each.training]
    statistics = [(each.running_mean, each.running_var) for each in norms]
    learnt = (p for p in module.parameters() if p.requires_grad)
    return [*learnt, *(s for pair in statistics for s in pair if s is not None)]


class RunningMean:
    """Running mean of tensors, which themselves go on being trained.

    Args:
        parameters: What is averaged; the mean starts at their values.
        newest: How much the newest weights count at first: the mean of the last 1/newest of the
            steps taken. 1 is a plain mean of all. It ends as a mean over some fifty steps.
    """

    def __init__(self, parameters: Iterable[Tensor], newest: float) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._means = [p.detach().clone() for p in self._parameters]
        self._newest = newest

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after so many steps in all."""
        share = max(_SHARE, min(1.0, self._newest / steps))
        torch._foreach_lerp_(self._means, self._parameters, share)

    @torch.no_grad()
    def begin_anew(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Set the mean of these parameters, or of all, to their present values."""
        chosen = None if parameters is None else {id(p) for p in parameters}
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            if chosen is None or id(parameter) in chosen:
                mean.copy_(parameter)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Run with the means in place of the weights."""
        current = [p.detach().clone() for p in self._parameters]
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._means)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, current)


def copy_of_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state, apart from the module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
