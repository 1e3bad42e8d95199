"""A flow that sbi's trainer has built becomes half of a joint estimator."""

from typing import Any

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor

from ..base import Base
from ..embedding import evaluating
from ..estimator import JeffreysEstimator
from ..layers.autoregressive import accelerate
from ..proxy import ProxyBuilder, check_network
from ..selection.seen import missed, new_codes
from ..utils.warn import warn

__all__ = ["join", "warn_of_columns"]

# Simulations at which a user's proxy is tried.
_ROWS_TO_TRY = 6
# Columns that a warning names.
_NAMED = 10


def join(
    flow: ConditionalDensityEstimator,
    theta: Tensor,
    x: Tensor,
    base: Base | None,
    build_proxy: ProxyBuilder,
    spec: dict[str, Any],
) -> JeffreysEstimator:
    """Return a flow joined with a proxy that is new.

    Args:
        flow: As sbi has built it.
        theta: Parameters of the training simulations, shape (n, d), on the CPU.
        x: Data of the first m of them, shape (m, *event), on the CPU.
        base: Base density of the proxy; ``None`` for the flow alone.
        build_proxy: Builds its network.
        spec: Names of both; ``None`` for those of users, who are told if what they build will not
            do.

    Raises:
        TypeError: If what it builds is no module.
        ValueError: See :func:`sbi_jeffreys.proxy.check_network`.
    """
    accelerate(flow)
    # The flow alone can be saved, too.
    flow.spec = {"density_estimator": spec["density_estimator"]}
    estimator = JeffreysEstimator(flow, theta, x, base=base, build_proxy=build_proxy)
    estimator.spec = dict(spec)
    if estimator.proxy is not None and spec["proxy"] is None:
        network, few = estimator.proxy.network, slice(_ROWS_TO_TRY)
        with torch.no_grad(), evaluating(flow):
            context = estimator.embed(x[few])
        check_network(getattr(network, "network", network), theta[few], context)
    return estimator


def warn_of_columns(
    estimator: JeffreysEstimator, theta: Tensor, x: Tensor, rows: Tensor, *, later_round: bool
) -> None:
    """Say so where simulations tell of columns, or codes, that a flow was built without.

    Args:
        estimator: Built from earlier simulations.
        theta: Parameters of those that are there now, shape (n, d).
        x: Data, shape (n, *event).
        rows: Which of them are trained on.
        later_round: Whether there has been a proposal.
    """
    # What sbi asks for where simulations of the first round are trained on again.
    first = "" if later_round else ", force_first_round_loss=True"
    remedy = f"train(retrain_from_scratch=True{first})."
    columns = missed(estimator, theta, x, rows)
    if columns:
        warn(
            f"Columns {_first_few(columns)} of x say something of theta in the simulations that "
            "are there now, and the flow was built without them from earlier ones. To have it "
            f"look at them, {remedy}"
        )
    codes = new_codes(estimator.flow, x, rows)
    if codes:
        found = ", ".join(f"{code:g} in {_first_few(where)}" for code, where in codes.items())
        warn(
            f"Columns of x now have values that look like codes of missing ones: {found}. The flow "
            "was built from earlier simulations, without them, and takes them for numbers. To have "
            f"them filled in, {remedy}"
        )


def _first_few(columns: list[int]) -> str:
    more = len(columns) - _NAMED
    return f"{columns[:_NAMED]} and {more} more" if more > 0 else f"{columns}"
