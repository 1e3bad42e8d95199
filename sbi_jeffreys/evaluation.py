r"""Flow and proxy where one batch of the objective looks at them, each evaluated once.

What costs is the number of operations, not how many rows they have. So a batch's data, the flow's
samples for D2 and the pairs that the proxy has simulated go through the flow together, and through
the proxy with the draws of its base. What follows from the numbers is in
:mod:`sbi_jeffreys.objective`.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .draws import ReverseSet
from .estimator import JeffreysEstimator
from .proxy import EnergyProxy
from .replay.cuda import side_by_side

__all__ = ["Evaluated", "evaluate", "evaluate_flow"]


class Evaluated(NamedTuple):
    """Log densities at the B data, at the P undisturbed data of D2 and at K samples at its N x.

    ``flow_*`` and ``proxy_*`` are (B,), (P,) and (K, N), the proxy's without its normalisation;
    ``flow_own`` the flow at pairs that the proxy has simulated. ``ratio_data`` (B,) and
    ``ratio_base`` (M, B + N) are the proxy relative to its base, at the data and at base draws. A
    proxy that is a likelihood has ``log_likelihood`` (B,), of the data, and ``shift`` (N,), what it
    adds at the x of D2; of these its ``ratio_base`` has those that are plain, if any is.
    """

    flow_data: Tensor
    flow_plain: Tensor
    flow_samples: Tensor
    flow_own: Tensor
    proxy_plain: Tensor
    proxy_samples: Tensor
    ratio_data: Tensor
    ratio_base: Tensor
    log_likelihood: Tensor | None
    shift: Tensor | None


def evaluate(
    estimator: JeffreysEstimator,
    theta: Tensor,
    context: Tensor,
    reverse_set: ReverseSet,
    base_draws: Tensor,
    *,
    num_own: int,
) -> Evaluated:
    """Evaluate flow and proxy at all points of one batch.

    Args:
        estimator: Flow and proxy.
        theta: Parameters, shape (B, d).
        context: Embedded data, shape (B, c).
        reverse_set: Where D2 looks.
        base_draws: Negatives, shape (M, d).
        num_own: Pairs that the proxy simulates, if it is a likelihood.

    Returns:
        Log densities, nats.
    """
    proxy = estimator.proxy
    assert proxy is not None
    rows, (draws, num) = len(theta), reverse_set.samples.shape[:2]
    sizes = (rows, reverse_set.plain, draws * num)
    points = torch.cat(
        (theta, reverse_set.theta[: reverse_set.plain], reverse_set.samples.flatten(0, 1))
    )
    # Which x each of them goes with: the batch's come first, then those of D2.
    at_data = torch.arange(rows + reverse_set.plain, device=theta.device)
    at_samples = torch.arange(rows, rows + num, device=theta.device).expand(draws, -1).flatten()
    which = torch.cat((at_data, at_samples))

    def of_flow(points: Tensor, context: Tensor, at_x: Tensor, which: Tensor, _: Tensor) -> Any:
        return evaluate_flow(estimator, points, torch.cat((context, at_x))[which], num_own)

    (log_prob, flow_own), (log_proxy, ratio_data, ratio_base, log_likelihood, shift) = side_by_side(
        of_flow,
        partial(_evaluate_proxy, proxy, rows=rows, plain=reverse_set.plain or num),
        (points, context, reverse_set.context, which, base_draws),
    )
    flow_data, flow_plain, flow_samples = log_prob.split(sizes)
    proxy_plain, proxy_samples = log_proxy.split(sizes[1:])
    return Evaluated(
        flow_data,
        flow_plain,
        flow_samples.reshape(-1, num),
        flow_own,
        proxy_plain,
        proxy_samples.reshape(-1, num),
        ratio_data=ratio_data,
        # At the data's x, for the ranking loss, and at the x of D2, for the gauge.
        ratio_base=ratio_base,
        log_likelihood=log_likelihood,
        shift=shift,
    )


def evaluate_flow(
    estimator: JeffreysEstimator, theta: Tensor, context: Tensor, num: int
) -> tuple[Tensor, Tensor]:
    """Return the flow's log density at pairs (P,), and at pairs of the proxy's own (num,).

    Args:
        estimator: Flow and, where there are to be pairs of its own, proxy.
        theta: Parameters, shape (P, d).
        context: Embedded data, shape (P, c).
        num: Pairs that the proxy simulates, if it is a likelihood.
    """
    own = _own_simulations(estimator.proxy, num, theta, context)
    log_prob = estimator.log_prob_embedded(
        torch.cat((theta, own[0])).unsqueeze(0), torch.cat((context, own[1]))
    )[0]
    at_pairs, at_own = log_prob.split((len(theta), len(own[0])))
    return at_pairs, at_own


def _evaluate_proxy(
    proxy: EnergyProxy,
    points: Tensor,
    context: Tensor,
    at_x: Tensor,
    which: Tensor,
    base: Tensor,
    *,
    rows: int,
    plain: int,
) -> tuple[Tensor | None, ...]:
    """Return what :class:`Evaluated` has of the proxy, the first of it at all points of D2.

    Of the points (P, d) each goes with one of the data (B, c) and those of D2 (N, c); the first so
    many rows are the batch's parameters, which go with the data in their order. Draws of the base
    (M, d) go with the data and, for a likelihood, with so many of the x of D2: those whose log Z
    matters.
    """
    likelihood = proxy.likelihood
    # The proxy sees data in steps as if they were continuous.
    seen = context if likelihood is None else likelihood.dequantize(context)
    all_seen = torch.cat((seen, at_x))
    # Parts of what is large, no slices of it: the gradient of each would be as large as the whole.
    sizes, (data, others) = (rows, len(points) - rows), points.tensor_split([rows])
    if likelihood is None:
        ratio_data, ratio = proxy.network(points.unsqueeze(0), all_seen[which])[0].split(sizes)
        ratio_base = proxy.network(base.unsqueeze(1), all_seen)
        log_likelihood = shift_there = None
    else:
        at_pairs, at_base, shift = likelihood.at_pairs_and_all(
            points, base, all_seen, which, rows + plain
        )
        log_likelihood, at_others = at_pairs.split(sizes)
        shift_data, shift_there = shift.split((rows, len(at_x)))
        ratio_data, ratio = log_likelihood + shift_data, at_others + shift[which[rows:]]
        ratio_base = at_base + shift[: rows + plain]
        if context.requires_grad:
            # An embedding that learns from it would make the data easy to explain: constant.
            log_likelihood = likelihood.log_likelihood(data, seen.detach())
    log_proxy = ratio + proxy.base.log_prob_soft(others)
    return log_proxy, ratio_data, ratio_base, log_likelihood, shift_there


def _own_simulations(
    proxy: EnergyProxy | None, num: int, theta: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Return draws (num, d), (num, c) of the proxy's joint distribution; none if it has none."""
    if num == 0 or proxy is None or proxy.likelihood is None:
        return theta[:0], context[:0]
    own = proxy.base.sample(num).to(theta)
    return own, proxy.likelihood.simulate(own)
