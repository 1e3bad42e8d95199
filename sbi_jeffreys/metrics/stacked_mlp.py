r"""Several binary classifiers of one architecture, trained at once as one stacked network.

A two-hidden-layer perceptron with logit :math:`z(x) = w_3^T h_2 + b_3`,
:math:`h_l = \mathrm{relu}(W_l h_{l-1} + b_l)`, :math:`h_0 = x`, minimises per batch of :math:`B`

.. math:: \frac{1}{B} \sum_i \left[ \log(1 + e^{z_i}) - y_i z_i \right]
          + \frac{\alpha}{2 B} \sum_l \|W_l\|^2

by Adam. It stops when the mean loss of an epoch has not fallen by more than `tol` below its best
for more than `patience` epochs. These are the choices of
:class:`sklearn.neural_network.MLPClassifier`, and so are the initial weights and the order of the
batches for one seed: the two differ only by rounding, until training amplifies it.

Five networks of 10 d hidden units are too small to keep a processor busy one after the other; most
of scikit-learn's time goes into everything around the matrix products. Here all folds share each
operation. Forward and backward pass are written by hand into buffers that are allocated once.
Features are rows and samples are columns: products with the single output unit then run along
contiguous memory, which makes them ten times as fast as the other way round.

References:
    Adam: A Method for Stochastic Optimization (Kingma and Ba, 2015),
    https://arxiv.org/abs/1412.6980, algorithm 1.
    Scikit-learn: Machine Learning in Python (Pedregosa et al., 2011),
    https://scikit-learn.org/stable/modules/neural_networks_supervised.html
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Layers", "StackedFit", "fit_stacked_mlp", "stacked_logits"]

# scikit-learn clips probabilities at the resolution of float32 before it takes logarithms.
LOGIT_LIMIT = math.log(1 / torch.finfo(torch.float32).eps - 1)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class StackedFit(NamedTuple):
    r"""Trained networks.

    Attributes:
        layers: Weights and biases of the K networks.
        losses: Mean training loss of every epoch, in nats, one list for each network.
    """

    layers: "Layers"
    losses: list[list[float]]


class Layers(NamedTuple):
    """Weights and biases of K networks, features d, hidden units H."""

    w1: Tensor  # (K, H, d)
    b1: Tensor  # (K, H, 1)
    w2: Tensor  # (K, H, H)
    b2: Tensor  # (K, H, 1)
    w3: Tensor  # (K, 1, H)
    b3: Tensor  # (K, 1, 1)


def _views(flat: Tensor, shapes: list[torch.Size]) -> Layers:
    """Cut a flat tensor into layers, each contiguous, since batched products write only those."""
    parts = flat.split([shape.numel() for shape in shapes])
    return Layers(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def _initial_layers(
    generator: np.random.RandomState, networks: int, features: int, hidden: int
) -> Layers:
    """Draw uniform Glorot weights and biases in scikit-learn's order, the same for all networks."""
    parts = []
    for fan_in, fan_out in [(features, hidden), (hidden, hidden), (hidden, 1)]:
        bound = math.sqrt(6 / (fan_in + fan_out))
        parts.append(generator.uniform(-bound, bound, (fan_in, fan_out)).T)
        parts.append(generator.uniform(-bound, bound, (fan_out, 1)))
    return Layers(*(torch.from_numpy(part).float().repeat(networks, 1, 1) for part in parts))


class _Backpropagation:
    """Loss gradients of K networks on batches of one size, in buffers allocated once."""

    def __init__(self, weights: Layers, gradients: Layers, batch: int):
        self.w, self.g, self.batch = weights, gradients, batch
        networks, hidden, _ = weights.w1.shape
        # Hidden activations and the loss gradients with respect to their inputs.
        shape = networks, hidden, batch
        self.h1, self.h2 = weights.w1.new_empty(shape), weights.w1.new_empty(shape)
        self.delta2 = weights.w1.new_empty(shape)
        self.delta1 = self.h2  # no longer needed by then, and less to keep in cache
        self.delta3 = weights.w1.new_empty(networks, 1, batch)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradients at x (K, B, d) and y (K, 1, B); return the logits (K, 1, B)."""
        w, g = self.w, self.g
        torch.baddbmm(w.b1, w.w1, x.mT, out=self.h1).relu_()
        torch.baddbmm(w.b2, w.w2, self.h1, out=self.h2).relu_()
        logits = torch.baddbmm(w.b3, w.w3, self.h2)

        torch.sigmoid(logits, out=self.delta3).sub_(y).div_(self.batch)
        torch.bmm(self.delta3, self.h2.mT, out=g.w3)
        torch.sum(self.delta3, dim=2, keepdim=True, out=g.b3)
        torch.mul(w.w3.mT, self.delta3, out=self.delta2)
        _mask_inactive(self.delta2, self.h2)
        torch.bmm(self.delta2, self.h1.mT, out=g.w2)
        torch.sum(self.delta2, dim=2, keepdim=True, out=g.b2)
        torch.bmm(w.w2.mT, self.delta2, out=self.delta1)
        _mask_inactive(self.delta1, self.h1)
        torch.bmm(self.delta1, x, out=g.w1)
        torch.sum(self.delta1, dim=2, keepdim=True, out=g.b1)
        return logits


def _mask_inactive(delta: Tensor, activation: Tensor) -> None:
    """Zero the gradient in place where the rectifier was not active."""
    torch.ops.aten.threshold_backward.grad_input(delta, activation, 0, grad_input=delta)


class _Training:
    """Weights and Adam moments of the networks that still train, flat: one update serves all."""

    def __init__(self, layers: Layers, *, rate: float, alpha: float):
        self.rate, self.alpha, self.steps = rate, alpha, 0
        self._allocate(layers, *(Layers(*map(torch.zeros_like, layers)) for _ in range(2)))

    def _allocate(self, *states: Layers) -> None:
        shapes = [layer.shape for layer in states[0]]
        flat = [torch.cat([layer.flatten() for layer in state]) for state in states]
        self.weights, self.first, self.second = flat
        self.gradients, self.scratch = torch.empty_like(flat[0]), torch.empty_like(flat[0])
        self.decay = torch.zeros_like(flat[0])
        self.layers, self.slopes = _views(self.weights, shapes), _views(self.gradients, shapes)
        self.moments = _views(self.first, shapes), _views(self.second, shapes)
        # Only matrices are decayed, not biases.
        decay = _views(self.decay, shapes)
        for matrix in (decay.w1, decay.w2, decay.w3):
            matrix.fill_(self.alpha)
        self.passes: dict[int, _Backpropagation] = {}

    def keep(self, rows: list[int]) -> None:
        """Drop every network but those of these rows."""
        states = (self.layers, *self.moments)
        self._allocate(*(Layers(*(layer[rows] for layer in state)) for state in states))

    def epoch(self, x: Tensor, y: Tensor, batch: int) -> Tensor:
        """Pass once over x (K, n, d), y (K, 1, n) in order; return mean losses (K,)."""
        n, parts = x.shape[1], []
        for start in range(0, n, batch):
            here = slice(start, min(start + batch, n))
            size = here.stop - start
            if size not in self.passes:
                self.passes[size] = _Backpropagation(self.layers, self.slopes, size)
            parts.append(self.passes[size].step(x[:, here], y[:, :, here]))
            self._adam(size)
        # Logits are those of the batch's own step. The penalty, 1e-4 of the loss, hardly moves in
        # an epoch: taking it at the end saves a reduction at every step.
        matrices = (self.layers.w1, self.layers.w2, self.layers.w3)
        squares = sum((w.square().sum(dim=(1, 2)) for w in matrices), start=torch.zeros(()))
        penalty = self.alpha / 2 * squares * len(parts) / n
        logits = torch.cat(parts, dim=2).clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
        data = torch.nn.functional.softplus(logits) - y * logits
        return data.mean(dim=(1, 2)) + penalty

    def _adam(self, size: int) -> None:
        self.steps += 1
        correction = math.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        gradients = self.gradients.addcmul_(self.decay, self.weights, value=1 / size)
        self.first.lerp_(gradients, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
        torch.sqrt(self.second, out=self.scratch).add_(EPSILON)
        self.weights.addcdiv_(self.first, self.scratch, value=-self.rate * correction)


@torch.no_grad()
def fit_stacked_mlp(
    x: Tensor,
    y: Tensor,
    train: Tensor,
    *,
    hidden: int,
    seed: int = 1,
    learning_rate: float = 1e-3,
    alpha: float = 1e-4,
    batch_size: int = 200,
    max_epochs: int = 10_000,
    tol: float = 1e-4,
    patience: int = 10,
) -> StackedFit:
    r"""Train K binary classifiers, each on its own subset of one data set.

    A network that meets the stopping rule leaves the stack; its weights stay as they are.

    Args:
        x: Inputs :math:`x`, shape :math:`(n, d)`, float32, standardised.
        y: Labels :math:`y \in \{0, 1\}`, shape :math:`(n)`.
        train: For each network, which rows it is trained on, shape :math:`(K, m)`, integers.
        hidden: Width of both hidden layers.
        seed: Seed of the initial weights and of the order of batches, the same for all networks.
        learning_rate: Step size of Adam.
        alpha: Weight of the penalty on matrices.
        batch_size: Samples in a batch, at most m.
        max_epochs: Largest number of epochs.
        tol: Decrease of the loss, in nats, below which an epoch counts as without improvement.
        patience: Epochs without improvement after which one more ends the training.

    Returns:
        Weights of all networks and their losses.

    Raises:
        ValueError: If the loss is not finite, as happens for inputs of huge scale or NaN.
    """
    networks, m = train.shape
    generator = np.random.RandomState(seed)
    final = _initial_layers(generator, networks, x.shape[1], hidden)
    training, active = _Training(final, rate=learning_rate, alpha=alpha), list(range(networks))
    losses: list[list[float]] = [[] for _ in active]
    best, stale = [math.inf] * networks, [0] * networks
    labels, order = y.to(x), np.arange(m)

    for _ in range(max_epochs):
        # As in sklearn.utils.shuffle, each epoch permutes the order of the last one.
        shuffled = np.arange(m)
        generator.shuffle(shuffled)
        order = order[shuffled]
        rows = train[active][:, torch.from_numpy(order)]
        inputs = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        outputs = labels.take(rows).unsqueeze(1)
        means = training.epoch(inputs, outputs, min(batch_size, m)).tolist()
        if not np.isfinite(means).all():
            raise ValueError("the classifier's loss is not finite: standardise x, or rescale it.")
        for k, loss in zip(active, means, strict=True):
            losses[k].append(loss)
            stale[k] = stale[k] + 1 if loss > best[k] - tol else 0
            best[k] = min(best[k], loss)
        for layer, trained in zip(final, training.layers, strict=True):
            layer[active] = trained
        going = [row for row, k in enumerate(active) if stale[k] <= patience]
        if not going:
            break
        if len(going) < len(active):
            training.keep(going)
            active = [active[row] for row in going]
    return StackedFit(final, losses)


@torch.no_grad()
def stacked_logits(fit: StackedFit, x: Tensor) -> Tensor:
    r"""Evaluate each network on its own inputs.

    Args:
        fit: K trained networks.
        x: Inputs :math:`x`, shape :math:`(K, m, d)`, float32.

    Returns:
        Logits :math:`z(x)`, positive for label 1, shape :math:`(K, m)`.
    """
    w = fit.layers
    h1 = torch.baddbmm(w.b1, w.w1, x.mT).relu()
    h2 = torch.baddbmm(w.b2, w.w2, h1).relu()
    return torch.baddbmm(w.b3, w.w3, h2).squeeze(1)
