"""What held-out data say of both models, and at what cost it is asked.

The flow's loss is exact and cheap, and looked at after every epoch. The proxy's density needs draws
for each x, so that it is looked at for few x, and not after every step: an epoch of few steps would
otherwise spend its time on looking. A proxy that is a likelihood is judged by that, without draws.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..diagnostics import diagnose_proxy
from ..estimator import FLOW_ALONE, JeffreysEstimator, Pooling
from ..likelihood.base import Likelihood
from ..likelihood.fit import likelihood_losses
from ..likelihood.stacking import Stack, stacked
from ..pool import losses as pool_losses
from ..utils.row_losses import bounded, lowest, mean_and_error
from ..utils.seeding import forked
from .batches import Data, LoaderData
from .patience import MOST_OF_A_ROW, ProxyPlateau

__all__ = [
    "LossHook",
    "ProxyLooks",
    "best_pooling",
    "center_partition",
    "flow_losses",
]

# Rows evaluated at once: enough to be fast, few enough for any memory.
_CHUNK = 8192
# Held-out x on which the proxy is looked at, the draws for each, and the least number of steps
# between two looks; twice as many where nothing is decided by them.
_ROWS, _DRAWS, _STEPS = 64, 32, 32
# The same for its likelihood.
_LIKELIHOOD_ROWS, _LIKELIHOOD_STEPS = 2000, 8
# x over which the mean of log Z is taken in the end: on some tasks it varies by nats from x to x.
_CENTER_ROWS = 512

# Weights of the pool among which held-out data choose, and how many rows are asked.
_WEIGHTS, _POOL_ROWS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75), 500
# The same in later rounds, where all pairs of rows are looked at.
_RANKED_ROWS = 200

LossHook = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Forward loss of (theta, x, masks), shape (B,), in place of the flow's cross-entropy."""


@torch.no_grad()
def flow_losses(
    estimator: JeffreysEstimator,
    data: Data | LoaderData,
    device: str,
    kernel: Callable[[Tensor], Tensor],
    atomic: tuple[LossHook, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the flow's loss at each row, and the same with outliers bounded, nats, shapes (n,).

    Args:
        estimator: Flow and proxy, left in evaluation mode.
        data: The rows.
        device: Where to evaluate.
        kernel: Calibration kernel, a function of x, that weighs the rows.
        atomic: Loss of later rounds, which takes the place of the negative log density, and the
            size of the batches whose parameters it contrasts.
    """
    estimator.eval()
    losses, weights = [], []
    size = atomic[1] if atomic else min(_CHUNK, estimator.most_pairs)
    for theta, x, masks in data.batches(size, device, shuffle=False):
        if atomic:
            loss = atomic[0](theta, x, masks)
        else:
            loss = -estimator.log_prob_embedded(theta.unsqueeze(0), estimator.embed(x))[0]
        losses.append(loss)
        weights.append(kernel(x))
    loss, weight = torch.cat(losses), torch.cat(weights)
    # Zero times infinity is NaN, and a row without weight has no say.
    plain, limited = (
        torch.where(weight == 0, weight, weight * each) for each in (loss, bounded(loss))
    )
    return plain, limited


@dataclass
class ProxyLooks:
    """What was seen of the proxy, and whether it has stopped improving.

    Args:
        watch: Whether its best weights are kept, to be put back.

    Attributes:
        seen: The last diagnostics, by their names in the record.
        lead: Nats by which the rows were likelier under the proxy than under the flow, in the mean;
            no row counts for more than three.
        looked: Steps at which they were made.
        likelihood_looked: Steps at which the likelihood was last looked at.
        plateau: The best weights.
    """

    watch: bool
    seen: dict[str, float] = field(default_factory=dict)
    lead: float = 0.0
    looked: int = 0
    likelihood_looked: int = -_LIKELIHOOD_STEPS
    plateau: ProxyPlateau = field(default_factory=ProxyPlateau)

    @torch.no_grad()
    def look(
        self,
        estimator: JeffreysEstimator,
        data: Data | LoaderData,
        steps: int,
        device: str,
        recorded: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        """Measure the proxy after so many steps, if enough were taken since the last time.

        ``recorded`` calls a function without arguments, which goes by a ``name``, or does again
        what the function did; by default it is called.
        """
        recorded = recorded or _as_it_is
        proxy = estimator.proxy
        assert proxy is not None
        likelihood = None if estimator.learns_embedding else proxy.likelihood
        # In a space that is still being learnt, likelihoods of two epochs do not compare.
        exact = likelihood is not None
        due = self.watch and steps >= self.likelihood_looked + _LIKELIHOOD_STEPS
        if likelihood is not None and due:
            self.likelihood_looked = steps
            see = partial(_see_likelihood, estimator, likelihood, data, device)
            (losses,) = recorded(see, name="likelihood")
            self.plateau.look(losses, proxy, steps)
        if self.seen and steps < self.looked + (2 * _STEPS if exact else _STEPS):
            return
        nll, log_z, sample_size, flow = recorded(
            partial(_see_both, estimator, data, device), name="both"
        )
        std, mean = torch.std_mean(log_z, correction=0)
        self.looked = steps
        self.seen = {
            "validation_loss_proxy": nll.mean().item(),
            "log_partition_mean": mean.item(),
            "log_partition_std": std.item(),
            "effective_sample_size": sample_size.mean().item(),
        }
        gains = (flow - nll).clamp(-MOST_OF_A_ROW, MOST_OF_A_ROW)
        self.lead = gains.mean().nan_to_num(nan=0.0).item()
        if self.watch and not exact:
            self.plateau.look(nll, proxy, steps)


def _as_it_is(look: Callable[[], tuple[Tensor, ...]], name: str) -> tuple[Tensor, ...]:
    return look()


@torch.no_grad()
def _see_likelihood(
    estimator: JeffreysEstimator, likelihood: Likelihood, data: Data | LoaderData, device: str
) -> tuple[Tensor]:
    """Return a likelihood's losses at held-out rows, shape (n,)."""
    theta, x = data.head(_LIKELIHOOD_ROWS, device)
    return (likelihood_losses(likelihood, theta, estimator.embed(x)),)


@torch.no_grad()
def _see_both(
    estimator: JeffreysEstimator, data: Data | LoaderData, device: str
) -> tuple[Tensor, ...]:
    """Return the proxy's losses, its log Z, effective sample sizes and the flow's losses."""
    theta, x = data.head(_ROWS, device)
    found = diagnose_proxy(estimator, theta, x, num_draws=_DRAWS)
    flow = -estimator.log_prob_embedded(theta.unsqueeze(0), estimator.embed(x))[0]
    return found.nll, found.log_partition, found.effective_sample_size, flow


@torch.no_grad()
def center_partition(
    estimator: JeffreysEstimator,
    data: Data | LoaderData,
    held_out: Data | LoaderData,
    device: str,
) -> None:
    """Let the mean of log Z over fresh x be zero: averaging weights does not average log Z.

    At x that the proxy was trained on, log Z is higher than at others. Held-out x say by how much,
    and count the more the further their mean is off in units of its standard error.

    Args:
        estimator: Flow and proxy; a proxy that is no likelihood stays as it is.
        data: Rows that were trained on, of which the first few hundred count.
        held_out: Rows that were not, likewise.
        device: Where to evaluate.
    """
    estimator.eval()
    likelihood = estimator.likelihood
    if likelihood is None:
        return
    mean = _log_partitions(estimator, data, device).mean()
    apart, error = mean_and_error(_log_partitions(estimator, held_out, device) - mean)
    if apart and math.isfinite(apart):
        mean = mean + apart / (1 + (error / apart) ** 2)
    if mean.isfinite():
        likelihood.log_ratio -= mean


def _log_partitions(estimator: JeffreysEstimator, data: Data | LoaderData, device: str) -> Tensor:
    """Return log Z at the first few hundred x."""
    theta, x = data.head(_CENTER_ROWS, device)
    return diagnose_proxy(estimator, theta, x, num_draws=_DRAWS).log_partition


@torch.no_grad()
def best_pooling(
    estimator: JeffreysEstimator,
    data: Data | LoaderData,
    device: str,
    kernel: Callable[[Tensor], Tensor],
    fitted: Sequence[Likelihood] = (),
    *,
    from_prior: bool = True,
) -> Pooling:
    """Return what to pool with the flow: of what is tried, that with the lowest held-out loss.

    Tried are the proxy and, where its network is a likelihood, a stack of that and others, each
    with several weights. A row that gains at one weight gains at others, so that even ten rows are
    a good guide. A gain that has to be sure is mostly given away.

    Args:
        estimator: Flow and proxy.
        data: The rows.
        device: Where to evaluate.
        kernel: Calibration kernel, a function of x, that weighs the rows.
        fitted: Other likelihoods of the same embedded data, on the CPU.
        from_prior: Whether the parameters come from the prior. Where they come from proposals, the
            loss is that of telling each row's from those of the others, whatever they come from.
    """
    if estimator.proxy is None:
        return FLOW_ALONE
    estimator.eval()
    theta, x = data.head(_POOL_ROWS if from_prior else _RANKED_ROWS, device)
    context, weights = estimator.embed(x), kernel(x)
    stacks: list[Stack | None] = [None]
    if fitted and estimator.likelihood is not None:
        # Of copies: a training that is resumed stacks them anew.
        others = [copy.deepcopy(each).to(device) for each in fitted]
        with forked(device):
            found = stacked(estimator.likelihood, others, (theta, context), weights)
        stacks += [] if found is None else [found]
    # All with the same draws of the flow.
    look = _losses if from_prior else _ranking_losses
    losses = [look(estimator, theta, context, stack) for stack in stacks]
    which, weight = divmod(lowest(torch.cat(losses), weights), len(_WEIGHTS))
    return Pooling(_WEIGHTS[weight], stacks[which]) if weight else FLOW_ALONE


def _losses(
    estimator: JeffreysEstimator, theta: Tensor, context: Tensor, stack: Stack | None
) -> Tensor:
    """Return the losses of pools with all weights, shape (W, n)."""
    return pool_losses(estimator, theta.unsqueeze(0), context, _WEIGHTS, stack)[:, 0]


def _ranking_losses(
    estimator: JeffreysEstimator, theta: Tensor, context: Tensor, stack: Stack | None
) -> Tensor:
    """Return the same for parameters from any proposals: each ranked among those of all rows.

    This is the atomic loss of later rounds with all rows as atoms, which draws none.
    """
    assert estimator.proxy is not None
    shared = theta.unsqueeze(1)
    losses = pool_losses(estimator, shared, context, _WEIGHTS, stack)
    ratios = -losses - estimator.proxy.base.log_prob_soft(shared)
    return ratios.logsumexp(dim=1) - ratios.diagonal(dim1=1, dim2=2)
