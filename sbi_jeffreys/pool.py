r"""What is used after training: flow and proxy as one density, their logarithmic opinion pool.

Flow and proxy make different mistakes at an x that neither has seen. Their pool,

.. math:: p(\theta | x) \propto p_\phi(\theta | x)\, e^{t_b(\theta, x)}, \qquad
    t = w \log \frac{\tilde q_\psi(\theta | x)}{p_\phi(\theta | x)}, \qquad
    t_b = \max\{ \min\{ t, c(x) \}, c(x) - 3 \}

is, but for the bounds, the density that minimises
:math:`(1 - w) \mathrm{KL}(p \| p_\phi) + w\, \mathrm{KL}(p \| q_\psi)`: the geometric mean of the
two. Held-out data choose the weight w; zero is the flow alone. A proxy without normalisation will
do, since the pool has one of its own.

The upper bound is what makes it a density to draw from: a draw of the flow is kept with probability
:math:`\exp(t_b - c)`, and :math:`c(x)` lies as high as it can while at least a quarter of the draws
are kept. Far from all data flow and proxy may differ by hundreds of nats; the bounds leave the
proxy a limited say. Draws are exact; the normaliser is estimated from draws of the flow, always the
same ones, and quasi-random where the flow has a normal base.

References:
    | Combining probability distributions: a critique and an annotated bibliography (Genest and
      Zidek, 1986), https://doi.org/10.1214/ss/1177013825, section 3: the logarithmic opinion pool
    | Truncated importance sampling (Ionides, 2008), https://doi.org/10.1198/106186008X320456
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .divergences import log_mean_exp
from .utils.devices import widest

if TYPE_CHECKING:
    from .estimator import JeffreysEstimator
    from .likelihood.stacking import Stack

__all__ = [
    "LastLevel",
    "Level",
    "energy",
    "level_of",
    "levels",
    "log_prob",
    "log_ratio",
    "losses",
    "sample",
]

# Share of the flow's draws that is kept at least, and nats by which one draw can be better than
# another to the proxy.
_KEPT, _SPAN = 0.25, 3.0
# Draws at each x that normalise, and when held-out data choose a weight.
_NORMALISING, _CHOOSING = 256, 128
# Seed of the former: none that users are likely to take, whose own draws these would be.
_SEED = 251_111_159
# Pairs evaluated, and drawn, at once on a CPU: a layer's outputs at more of them are so large that
# memory for them is fetched from the system, and given back, each time.
_AT_ONCE, _DRAWN = 2**13, 2**14
# Bound on the absolute log ratio, nats; infinities and NaN are moved to it.
_LARGEST = 1e4


class Level(NamedTuple):
    """Upper bound c and logarithm of the normaliser at each x, nats, shapes (B,)."""

    bound: Tensor
    log_normalizer: Tensor

    def bounded(self, tilt: Tensor) -> Tensor:
        """Return tilts (*, B) within the bounds."""
        return torch.maximum(torch.minimum(tilt, self.bound), self.bound - _SPAN)

    def of(self, rows: Tensor) -> "Level":
        """Return the level at some of the x, by their numbers."""
        return Level(self.bound[rows], self.log_normalizer[rows])


def level_of(tilts: Tensor) -> Level:
    """Return the bound at which a quarter of draws is kept, or the highest tilt if that keeps more.

    Args:
        tilts: At draws of the flow, shape (K, B), nats.
    """
    num = len(tilts)
    ordered = tilts.to(widest(tilts.device)).sort(dim=0, descending=True).values
    highest = ordered[0]
    # With the j highest at the bound, K e^c / 4 = j e^c + the sum over the others.
    others = ordered.flip(0).logcumsumexp(0).flip(0)
    share = _KEPT * num - torch.arange(num, device=tilts.device).unsqueeze(-1)
    bounds = others - share.clamp_min(1e-12).log()
    # The first j that leaves none of the others above the bound.
    first = (bounds >= ordered).to(torch.uint8).argmax(dim=0, keepdim=True)
    level = Level(torch.minimum(bounds.gather(0, first)[0], highest), highest)
    log_normalizer = log_mean_exp(level.bounded(ordered))
    return Level(level.bound.to(tilts), log_normalizer.to(tilts))


@torch.no_grad()
def levels(estimator: "JeffreysEstimator", context: Tensor) -> Level:
    """Return bound and normaliser given embedded data (B, c), from the same draws at every call."""
    found = []
    for part in context.split(max(1, estimator.most_pairs // _NORMALISING)):
        drawn = estimator.sample_with_log_prob(_NORMALISING, part, seed=_SEED)
        tilts = estimator.weight * log_ratio(estimator, part, *drawn, estimator.stack)
        found.append(level_of(tilts))
    return Level(*map(torch.cat, zip(*found, strict=True)))


class LastLevel:
    """The level at the x that were asked for last: Markov chains ask for them many times.

    Weights that are written through ``.data``, which torch does not count, are not seen to change.
    """

    def __init__(self) -> None:
        # All in one: threads must not see the key of one x beside the level of another.
        self._last: tuple[tuple[float, ...], Tensor, Level] | None = None

    def at(self, estimator: "JeffreysEstimator", context: Tensor) -> Level:
        """Return bound and normaliser given embedded data (B, c)."""
        tensors = [context, *estimator.parameters(), *estimator.buffers()]
        if any(value.is_inference() for value in tensors):
            # Nothing tells when these change.
            return levels(estimator, context)
        # Training in place counts a tensor's version up, other weights lie elsewhere.
        states = chain.from_iterable((v._version, v.data_ptr()) for v in tensors[1:])
        key = (estimator.weight, *states)
        last = self._last
        if last is None or key != last[0] or not torch.equal(context, last[1]):
            last = key, context.detach().clone(), levels(estimator, context)
            self._last = last
        return last[2]


def log_prob(estimator: "JeffreysEstimator", theta: Tensor, context: Tensor) -> Tensor:
    """Return the pool's log density.

    Args:
        estimator: Flow, proxy and weight.
        theta: Shape (S, B, d).
        context: Embedded data, shape (B, c).

    Returns:
        Nats, shape (S, B). The gradient in theta is that of the density; in weights and x, that
        of its normaliser is missing.
    """
    if not len(theta) or not len(context):
        return context.new_zeros(len(theta), len(context))
    # One normaliser for an x, however often it stands there.
    different, where = context.detach().unique(dim=0, return_inverse=True)
    level = estimator.last_level.at(estimator, different).of(where)
    found = []
    # A gradient holds on to all of them in any case.
    at_once = _num_at_once(estimator, context, _AT_ONCE)
    for some in theta.split(len(theta) if torch.is_grad_enabled() else at_once):
        flow = estimator.log_prob_embedded(some, context)
        tilt = estimator.weight * log_ratio(estimator, context, some, flow, estimator.stack)
        found.append(flow + level.bounded(tilt) - level.log_normalizer)
    return torch.cat(found)


@torch.no_grad()
def sample(estimator: "JeffreysEstimator", num: int, context: Tensor) -> Tensor:
    """Return draws of the pool given embedded data (B, c), shape (num, B, d)."""
    if not len(context):
        return context.new_empty(num, 0, *estimator.input_shape)
    level = estimator.last_level.at(estimator, context)
    kept = (level.log_normalizer - level.bound).exp()
    drawn = context.new_empty(num, len(context), *estimator.input_shape)
    filled = torch.zeros(len(context), dtype=torch.long, device=context.device)
    short = torch.arange(len(context), device=context.device)
    while num and len(short):
        some = short[: estimator.most_pairs]
        # As many for each x as the average x still needs, and a few to spare.
        wanted = ((num - filled[some]) / kept[some]).mean().item()
        wanted = min(int(1.1 * wanted) + 8, _num_at_once(estimator, context[some], _DRAWN))
        theta, flow = estimator.sample_with_log_prob(wanted, context[some])
        ratio = log_ratio(estimator, context[some], theta, flow, estimator.stack)
        tilt = estimator.weight * ratio
        here = level.of(some)
        keep = here.bounded(tilt) - here.bound > torch.rand_like(tilt).log()
        place = filled[some] + keep.cumsum(dim=0) - 1
        row, column = (keep & (place < num)).nonzero(as_tuple=True)
        drawn[place[row, column], some[column]] = theta[row, column]
        filled[some] += keep.sum(dim=0)
        short = short[filled[short] < num]
    return drawn


@torch.no_grad()
def losses(
    estimator: "JeffreysEstimator",
    theta: Tensor,
    context: Tensor,
    weights: tuple[float, ...],
    stack: "Stack | None" = None,
) -> Tensor:
    """Return the negative log densities of pools of these weights, shape (W, S, B), nats.

    Args:
        estimator: Flow and proxy.
        theta: Parameters, shape (S, B, d), or (S, 1, d) for parameters that all data share.
        context: Embedded data, shape (B, c).
        weights: Weights of the proxy.
        stack: Likelihoods beside the proxy's own.
    """
    theta = theta.expand(-1, len(context), -1)
    found, size = [], max(1, estimator.most_pairs // max(_CHOOSING, len(theta)))
    for rows, part in zip(theta.split(size, dim=1), context.split(size), strict=True):
        drawn = estimator.sample_with_log_prob(_CHOOSING, part, seed=_SEED)
        ratios = log_ratio(estimator, part, *drawn, stack)
        flow = estimator.log_prob_embedded(rows, part)
        ratio = log_ratio(estimator, part, rows, flow, stack)
        pools = []
        for weight in weights:
            level = level_of(weight * ratios)
            pools.append(level.log_normalizer - level.bounded(weight * ratio) - flow)
        found.append(torch.stack(pools))
    return torch.cat(found, dim=2)


def log_ratio(
    estimator: "JeffreysEstimator",
    context: Tensor,
    theta: Tensor,
    flow: Tensor,
    stack: "Stack | None" = None,
) -> Tensor:
    """Return the log density of the proxy, or of a stack, relative to the flow's, shape (S, B).

    Args:
        estimator: Flow and proxy.
        context: Embedded data, shape (B, c).
        theta: Parameters, shape (S, B, d).
        flow: The flow's log density there, shape (S, B).
        stack: Likelihoods beside the proxy's own.
    """
    assert estimator.proxy is not None
    proxy = energy(estimator, theta, context, stack) + estimator.proxy.base.log_prob_soft(theta)
    return (proxy - flow).nan_to_num(nan=-_LARGEST).clamp(-_LARGEST, _LARGEST)


def energy(
    estimator: "JeffreysEstimator", theta: Tensor, context: Tensor, stack: "Stack | None"
) -> Tensor:
    """Return the energy (S, B) of the proxy, or of a stack of its likelihood with others."""
    proxy = estimator.proxy
    assert proxy is not None
    evaluate: Callable[[Tensor, Tensor], Tensor] = proxy.network
    if stack is not None:
        assert proxy.likelihood is not None
        evaluate = partial(stack, proxy.likelihood)
    at_once = _num_at_once(estimator, context, _AT_ONCE)
    return torch.cat([evaluate(some, context) for some in theta.split(at_once)])


def _num_at_once(estimator: "JeffreysEstimator", context: Tensor, on_cpu: int) -> int:
    """Return how many parameters for each of the data (B, c) to evaluate, or to draw, at once."""
    most = estimator.most_pairs
    pairs = min(on_cpu, most) if context.device.type == "cpu" else most
    return max(1, pairs // max(1, len(context)))
