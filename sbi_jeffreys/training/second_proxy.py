r"""Whether another proxy should be tried: a look at what the likelihood has not understood.

The default proxy is a likelihood, a mixture of a few Gaussians for each :math:`\theta`, and can
simulate. Where that is the wrong form (x with a random sign, points on a ring, category codes) the
flow is held to a wrong proxy for long and ends behind maximum likelihood. A proxy of pairs, of no
form, is then better by up to a nat, elsewhere worse by as much.

So the likelihood's simulations are put before a critic, a small network h that learns to tell data
from simulations at the same :math:`\theta`. Its logit is the logarithm of the ratio of the two, and
:math:`q_\psi e^h`, normalised, would be a better proxy: better at a held-out pair by

.. math:: h(\theta, x) - \log \mathbb{E}_{q_\psi(\theta' | x)}[e^{h(\theta', x)}] \text{ nats.}

What the critic finds in x alone, which says nothing of :math:`\theta`, cancels.

References:
    | Revisiting classifier two-sample tests (Lopez-Paz and Oquab, 2017), arXiv 1610.06545
    | Boosted generative models (Grover and Ermon, 2018), arXiv 1702.08484
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..estimator import JeffreysEstimator
from ..likelihood.base import Likelihood
from ..optim.adam import Adam
from ..optim.weights import copy_of_weights
from ..pool import log_ratio
from ..replay.cpu import Repeated
from ..utils.row_losses import mean_and_error, surest
from ..utils.seeding import forked
from .batches import Data, LoaderData

__all__ = ["is_better", "is_rejected", "likelihood_is_doubtful"]

# Rows that train the critic and that judge it, at least so many of the latter.
_ROWS, _HELD_OUT, _FEWEST = 2000, 500, 50
# Steps of the critic, and between two looks at held-out rows; looks without progress, in nats, that
# end its training.
_STEPS, _LOOK, _PATIENCE, _PROGRESS = 400, 20, 5, 0.002
_BATCH, _WIDTH = 200, 128
# Steps before one is recorded.
_RECORDED = 5
# Simulations for each held-out row, and draws of the flow for each x.
_COPIES, _DRAWS = 8, 256
# Nats to be gained, and standard errors that the gain must be above zero.
_GAIN, _ERRORS = 0.12, 2.5
# Held-out rows at least whose word against a proxy counts.
_FEWEST_TO_REJECT = 20


def is_rejected(estimator: JeffreysEstimator, reverse: float, held_out: Data | LoaderData) -> bool:
    """Whether held-out rows want nothing of a proxy that says other than the flow.

    Args:
        estimator: Flow and proxy, trained and pooled.
        reverse: D2 at the end of the training, nats.
        held_out: What has chosen the weight of the pool; fewer than 20 rows reject nothing.
    """
    if estimator.weight or not reverse > _GAIN:
        return False
    return len(held_out.head(_FEWEST_TO_REJECT, "cpu")[0]) == _FEWEST_TO_REJECT


def likelihood_is_doubtful(
    estimator: JeffreysEstimator, data: Data | LoaderData, held_out: Data | LoaderData, device: str
) -> bool:
    """Whether a critic finds something in the likelihood that matters for posteriors.

    Args:
        estimator: Flow and proxy, trained.
        data: What the critic may learn from.
        held_out: What it is judged by; with fewer than 50 rows nothing is doubtful.
        device: Where to evaluate.
    """
    estimator.eval()
    theta, x = held_out.head(_HELD_OUT, device)
    likelihood = estimator.likelihood
    if likelihood is None or len(theta) < _FEWEST:
        return False
    # Draws are none of the training's, which may be resumed.
    with forked(device):
        with torch.no_grad():
            seen = data.head(_ROWS, device)
            context, held_out_context = estimator.embed(seen[1]), estimator.embed(x)
        critic = _train_critic(likelihood, (seen[0], context), (theta, held_out_context))
        if critic is None:
            return False
        gains = _gains(critic, estimator, theta, held_out_context)
    gain, error = mean_and_error(gains)
    return gain > _GAIN and gain > _ERRORS * error


@torch.no_grad()
def is_better(
    second: JeffreysEstimator, first: JeffreysEstimator, held_out: Data | LoaderData, device: str
) -> bool:
    """Whether held-out rows prefer the second estimator by more than a standard error."""
    theta, x = held_out.head(_HELD_OUT, device)
    with forked(device):
        losses = [each.eval().loss(theta, x) for each in (first, second)]
    return surest(torch.stack(losses)) == 1


class _Critic(nn.Module):
    """The logarithm of the density of data relative to simulations, given theta."""

    def __init__(self, network: Likelihood, d: int, c: int) -> None:
        super().__init__()
        self.of_theta, self.of_context = network.standard_theta, network.standardized
        last = nn.Linear(_WIDTH, 1)
        nn.init.zeros_(last.weight)
        hidden = [nn.Linear(d + c, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU()]
        self.layers = nn.Sequential(*hidden, last)

    def forward(self, theta: Tensor, context: Tensor) -> Tensor:
        """Return the logit, shape (*,), at theta (*, d) and embedded data (*, c)."""
        inputs = torch.cat((self.of_theta(theta), self.of_context(context)), dim=-1)
        return self.layers(inputs).squeeze(-1)


def _train_critic(
    network: Likelihood, rows: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]
) -> _Critic | None:
    """Return the critic that is best on held-out rows of (theta, embedded data), if it learns."""
    theta, context = rows
    critic = _Critic(network, theta.shape[1], context.shape[1]).to(theta.device)
    optimizer = Adam(critic.layers.parameters(), lr=2e-3, weight_decay=0.1)
    with torch.no_grad():
        copies = held_out[0].repeat(_COPIES, 1)
        to_judge = *held_out, copies, network.simulate(copies)
        best = _confusion(critic, network, *to_judge)

    def descend() -> tuple[Tensor, ...]:
        some = torch.randint(len(theta), (_BATCH,), device=theta.device)
        at, simulated = theta[some], network.simulate(theta[some])
        optimizer.zero_grad()
        loss = _confusion(critic, network, at, context[some], at, simulated)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    # All code in it is ours.
    step = Repeated(descend, _RECORDED if theta.device.type == "cpu" else None)
    weights, idle = None, 0
    for number in range(1, _STEPS + 1):
        step()
        if number % _LOOK == 0:
            with torch.no_grad():
                loss = _confusion(critic, network, *to_judge)
            idle += 1
            if loss < best - _PROGRESS:
                best, weights, idle = loss, copy_of_weights(critic.layers), 0
            if idle == _PATIENCE:
                break
    if weights is None:
        return None
    critic.layers.load_state_dict(weights)
    return critic


def _confusion(
    critic: _Critic,
    network: Likelihood,
    theta: Tensor,
    context: Tensor,
    simulated_at: Tensor,
    simulated: Tensor,
) -> Tensor:
    """Return the critic's cross-entropy, data and simulations counting the same."""
    # The likelihood simulates data in steps as if they were continuous.
    of_data = critic(theta, network.dequantize(context))
    return F.softplus(-of_data).mean() + F.softplus(critic(simulated_at, simulated)).mean()


@torch.no_grad()
def _gains(critic: _Critic, estimator: JeffreysEstimator, theta: Tensor, context: Tensor) -> Tensor:
    """Return by how much the critic's proxy is better at each row, nats, shape (n,)."""
    draws, flow = estimator.sample_with_log_prob(_DRAWS, context)
    log_weights = log_ratio(estimator, context, draws, flow).log_softmax(dim=0)
    at_draws = critic(draws, context.expand(len(draws), *context.shape))
    return critic(theta, context) - (log_weights + at_draws).logsumexp(dim=0)
