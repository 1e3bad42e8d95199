"""The network of a likelihood that sees parameters: its units learn how sharply they bend."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

__all__ = ["BendingMLP", "mlp"]

# How much faster than a weight the logarithm of a sharpness moves.
_PACE = 10.0


def mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """Return a multilayer perceptron with SiLU.

    Args:
        inputs: Entries of what it takes.
        hidden: Units of a hidden layer.
        layers: Hidden layers.
        outputs: Entries of what it returns.
    """
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(inputs, hidden), nn.SiLU()]
        inputs = hidden
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))


class BendingMLP(nn.Sequential):
    r"""A multilayer perceptron with units :math:`\mathrm{silu}(\beta u) / \beta`.

    The sharpness :math:`\beta` is each unit's own, and its geometric mean over a layer is one: some
    units make kinks, others stay smooth, and the network is no sharper in all. Weights of another
    size say the same, but Adam does not find them: it moves all weights alike.

    Args:
        inputs: Entries of what it takes.
        hidden: Units of a hidden layer.
        layers: Hidden layers.
        outputs: Entries of what it returns.

    References:
        Searching for Activation Functions (Ramachandran et al., 2017),
        https://arxiv.org/abs/1710.05941, which has one :math:`\beta` that is learnt
    """

    def __init__(self, inputs: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__(*mlp(inputs, hidden, layers, outputs))
        self.sharpness = nn.Parameter(torch.zeros(layers, hidden))

    def forward(self, theta: Tensor) -> Tensor:
        """Return what it says, shape (*, outputs), of parameters (*, inputs)."""
        *hidden, last = self.plain_layers()
        for weight, bias in hidden:
            theta = silu(linear(theta, weight, bias))
        return linear(theta, *last)

    def plain_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return weights and biases of the layers of an :func:`mlp` that says the same."""
        # Weights are scaled, not what units take and say: they are fewer than the rows' entries.
        logs = _PACE * (self.sharpness - self.sharpness.mean(dim=1, keepdim=True))
        taken, said = (*logs.exp().unsqueeze(-1), None), (None, *(-logs).exp())
        layers = [layer for layer in self if isinstance(layer, nn.Linear)]
        plain: list[tuple[Tensor, Tensor]] = []
        for layer, after, before in zip(layers, taken, said, strict=True):
            weight, bias = layer.weight, layer.bias
            if before is not None:
                weight = weight * before
            if after is not None:
                weight, bias = weight * after, bias * after.squeeze(-1)
            plain.append((weight, bias))
        return plain

    def plain_weights(self) -> dict[str, Tensor]:
        """Return the ``state_dict`` of an :func:`mlp` that says the same."""
        weights = {}
        # Every other module is an activation.
        for number, (weight, bias) in enumerate(self.plain_layers()):
            weights[f"{2 * number}.weight"] = weight.detach()
            weights[f"{2 * number}.bias"] = bias.detach()
        return weights

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Files hold plain weights, with which all are equally sharp.
        if f"{prefix}0.weight" in state_dict:
            state_dict.setdefault(f"{prefix}sharpness", torch.zeros_like(self.sharpness))
        super()._load_from_state_dict(state_dict, prefix, *args)
