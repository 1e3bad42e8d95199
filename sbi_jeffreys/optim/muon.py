r"""Muon: descent along orthogonalised momentum, for the matrices inside of a flow.

Where a flow follows its proxy, what costs is the number of steps. Orthogonalising the momentum of a
weight matrix lets all of its directions learn at the same rate, not only the few that dominate the
gradient: the flow follows in fewer steps than with Adam (docs/trials.md). Everything that is no
matrix (and the embedding network) is left to Adam.

torch has an optimizer of that name since version 2.9; it takes matrices one by one, where a flow
has many small ones, of which those of a shape are taken together here.

References:
    | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024),
      https://kellerjordan.github.io/posts/muon/
    | Muon is Scalable for LLM Training (Liu et al., 2025), https://arxiv.org/abs/2502.16982,
      section 2.2: the scale of the updates
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .adam import Adam, Optimizer

__all__ = ["Muon", "orthogonalize"]

# Coefficients and number of the quintic iteration's steps (Jordan et al.): singular values end
# between 0.7 and 1.2, which is near enough.
_QUINTIC, _STEPS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95
# Root mean square of an update in units of the learning rate.
_SCALE = 0.6
# A matrix with fewer rows or columns has hardly any directions to balance.
_SMALLEST = 8


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices, nearly: Newton-Schulz iteration.

    Args:
        matrices: Shape (*, m, n).
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = (matrices.mT if tall else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    X = X / torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(_STEPS):
        A = torch.bmm(X, X.mT)
        # (b A + c A A) X + a X, each sum in the product that it belongs to.
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    X = X.view(*matrices.shape[:-2], *X.shape[1:])
    return X.mT if tall else X


class Muon(Optimizer):
    """Muon for matrices, Adam for all other parameters, with one learning rate.

    Args:
        parameters: What to train.
        lr: Learning rate of Adam; updates of a matrix have a root mean square of 0.6 of it.
        keep: Parameters that Adam trains although they are matrices.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, keep: Iterable[nn.Parameter] = ()
    ) -> None:
        super().__init__(parameters, lr)
        kept = {id(p) for p in keep}
        by_shape: dict[torch.Size, list[Tensor]] = {}
        others: list[Tensor] = []
        for p in self.parameters:
            matrix = p.dim() == 2 and min(p.shape) >= _SMALLEST and id(p) not in kept
            (by_shape.setdefault(p.shape, []) if matrix else others).append(p)
        self._stacks = list(by_shape.values())
        self._momenta = [torch.zeros_like(torch.stack(stack)) for stack in self._stacks]
        self._adam = Adam(others, lr)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters."""
        self._adam.lr = lr = self.lr
        self._adam.step()
        for stack, momentum in zip(self._stacks, self._momenta, strict=True):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in stack]
            gradient = torch.stack(gradients)
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            # Nesterov's: the momentum as it will be, if the gradient stays what it is.
            update = orthogonalize(gradient.lerp(momentum, _MOMENTUM))
            scale = _SCALE * lr * max(update.shape[-2:]) ** 0.5
            torch._foreach_add_(stack, list(update.unbind(0)), alpha=-scale)
