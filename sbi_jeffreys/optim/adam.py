"""Adam with decoupled weight decay, and what all optimizers here have in common.

torch's optimizers import its compiler when the first of them is made, 1.4 seconds that a training
of seven would wait for, and which no step here has any use for. Its kernels need none of that.

References:
    | Adam: A Method for Stochastic Optimization (Kingma and Ba, 2015), arXiv 1412.6980
    | Decoupled Weight Decay Regularization (Loshchilov and Hutter, 2019), arXiv 1711.05101
"""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Adam", "Optimizer"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Optimizer:
    """Parameters, and the rate at which they learn. Copies and pickles keep what it remembers.

    Args:
        parameters: What to train.
        lr: Learning rate, which may be changed between steps.

    Attributes:
        parameters: All of them, those that are at rest included.
        lr: As given.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update the parameters that have a gradient."""
        raise NotImplementedError


class Adam(Optimizer):
    """Adam with decoupled weight decay, in one kernel, which a CUDA graph may record.

    Args:
        parameters: What to train; complex ones count as pairs of real ones.
        lr: Learning rate.
        weight_decay: What is taken off the parameters in a step, relative to them and to ``lr``.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr)
        self.weight_decay = weight_decay
        # All at once: a recorded step must not make its own, and begin anew each time.
        real = [_real(p.detach()) for p in self.parameters]
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in real]
        self._steps = [p.new_zeros((), dtype=torch.float32) for p in real]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
        for p, moments, step in zip(self.parameters, self._moments, self._steps, strict=True):
            if p.grad is not None:
                own = _real(p), _real(p.grad), *moments, step
                kinds.setdefault((p.device, p.dtype), []).append(own)
        for of_kind in kinds.values():
            parameters, gradients, first, second, steps = map(list, zip(*of_kind, strict=True))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters,
                gradients,
                first,
                second,
                [],
                steps,
                lr=self.lr,
                beta1=_BETA1,
                beta2=_BETA2,
                weight_decay=self.weight_decay,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
