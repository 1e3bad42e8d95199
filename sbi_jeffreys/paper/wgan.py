r"""WGAN-GP, the adversarial baseline: a generator against a critic with a gradient penalty.

.. math:: \min_G \max_C \mathbb{E}[C(x)] - \mathbb{E}[C(G(z))]
    - \gamma \mathbb{E}[(\| \nabla C(\hat x) \| - 1)^2]

with :math:`\hat x` uniform on the lines between data and generated points.

References:
    Improved Training of Wasserstein GANs (Gulrajani et al., 2017), arXiv 1704.00028, algorithm 1
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["train_wgan"]

# The authors' values for toy data in the plane, not those for images (with the latter the generator
# collapses here at any rate): dimension of the noise, weight of the
# penalty, critic steps for each of the generator, Adam's betas.
_NOISE, _PENALTY, _CRITIC_STEPS, _BETAS = 2, 0.1, 5, (0.5, 0.9)
_WIDTH = 128


def train_wgan(
    samples: Tensor, *, learning_rate: float, steps: int, look: int, num: int, batch_size: int = 100
) -> Iterator[Tensor]:
    """Train a generator, and yield samples of it as training goes.

    Args:
        samples: Data, shape (n, d).
        learning_rate: Of generator and critic.
        steps: Steps of the generator.
        look: Steps between two yields.
        num: Samples in a yield.
        batch_size: Data and generated points in a step.

    Yields:
        Samples of the generator, shape (num, d).
    """
    mean, std = samples.mean(dim=0), samples.std(dim=0)
    data = (samples - mean) / std
    generator, critic = _mlp(_NOISE, data.shape[1]), _mlp(data.shape[1], 1)
    adam_generator, adam_critic = (
        torch.optim.Adam(module.parameters(), lr=learning_rate, betas=_BETAS, fused=True)
        for module in (generator, critic)
    )
    for step in range(1, steps + 1):
        for _ in range(_CRITIC_STEPS):
            real = data[torch.randint(len(data), (batch_size,))]
            fake = generator(torch.randn(batch_size, _NOISE)).detach()
            loss = critic(fake).mean() - critic(real).mean()
            loss = loss + _PENALTY * _gradient_penalty(critic, real, fake)
            _descend(adam_critic, loss)
        _descend(adam_generator, -critic(generator(torch.randn(batch_size, _NOISE))).mean())
        if step % look == 0:
            with torch.no_grad():
                yield generator(torch.randn(num, _NOISE)) * std + mean


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, outputs),
    )


def _gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean square by which the slope of the critic differs from one."""
    points = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (slopes.norm(dim=1) - 1).square().mean()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
