r"""A batch of ordinary differential equations, each solved with its own step size.

The embedded pair of Dormand and Prince, of orders 5 and 4, for :math:`\dot y = f(y)`: with
:math:`k_i = f(y + h \sum_{j<i} a_{ij} k_j)` a step is :math:`y + h \sum_i b_i k_i`, its error
estimate is :math:`e = h \sum_i (b_i - \hat b_i) k_i`, the step is accepted where :math:`\max_j
|e_j| \le \tau`, and the next size is :math:`0.9\, h\, (\tau / \max_j |e_j|)^{1/5}` within factors
0.2 and 5.

The last stage of a step is the first one of the next. Gradients flow through the accepted steps;
step sizes are constants to them.

References:
    A family of embedded Runge-Kutta formulae (Dormand and Prince, 1980),
    https://doi.org/10.1016/0771-050X(80)90013-3
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["solve_ode"]

A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# b is the last row of A with a zero behind it; these are the weights b − b̂ of the error.
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
MAX_STEPS = 100_000


def solve_ode(
    f: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    theta: Tensor,
    times: Sequence[float],
    *,
    tolerance: float = 1e-7,
) -> Tensor:
    r"""Solves :math:`\dot y = f(y, \theta)` from the first time on, for every row of theta.

    Args:
        f: the derivative at states ``(m, k)`` with parameters ``(m, d)``, of shape ``(m, k)``.
        y: the state at the first time, of shape ``(n, k)``.
        theta: parameters, of shape ``(n, d)``.
        times: increasing times at which the state is wanted, at least two.
        tolerance: the largest absolute error estimate :math:`\tau` of a step.

    Returns:
        States at the times, of shape ``(n, len(times), k)``.

    Raises:
        ValueError: if parameters are not finite.
        RuntimeError: if a solution needs more than 100,000 steps.
    """
    odd = int((~theta.isfinite().all(dim=1)).sum())
    if odd:
        raise ValueError(f"{odd} of {len(theta)} rows of theta hold NaN or inf")
    gaps = torch.as_tensor(times, dtype=y.dtype, device=y.device).diff()
    n = len(y)
    if n == 0:
        return y.new_empty(0, len(times), y.shape[1])
    row, column = torch.arange(n, device=y.device), torch.ones_like(y[:, 0], dtype=torch.int64)
    h = torch.full_like(y[:, 0].detach(), 0.01)
    left = gaps[0].expand(n)
    # Every equation records its states as it arrives at the times, all in the order of `where`.
    where, states = [row * len(times)], [y]
    dy = f(y, theta)
    for _ in range(MAX_STEPS):
        step = torch.minimum(h, left)
        proposed, slope, error = _step(f, y, dy, theta, step)
        good = error <= tolerance
        y, dy = torch.where(good[:, None], proposed, y), torch.where(good[:, None], slope, dy)
        h = _resize(h, step, error, good, tolerance)

        arrived = good & (step == left)
        left = torch.where(good, left - step, left)
        if not arrived.any():
            continue
        where.append(row[arrived] * len(times) + column[arrived])
        states.append(y[arrived])
        column = column + arrived
        left = torch.where(arrived, gaps[column.clamp(max=len(gaps)) - 1], left)
        going = column < len(times)
        # Equations that are done leave the batch.
        y, dy, theta, h, left = (z[going] for z in (y, dy, theta, h, left))
        row, column = row[going], column[going]
        if len(row) == 0:
            order = torch.cat(where).argsort()
            return torch.cat(states)[order].unflatten(0, (n, len(times)))
    raise RuntimeError(f"an equation was not solved in {MAX_STEPS} steps; check its parameters")


def _step(
    f: Callable[[Tensor, Tensor], Tensor], y: Tensor, dy: Tensor, theta: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: the new states and their derivatives ``(m, k)``, the error estimates ``(m,)``."""
    k, stage = [dy], y
    for a in A:
        stage = y + step[:, None] * _combine(a, k)
        k.append(f(stage, theta))
    error = step * _combine(E, k).detach().abs().amax(dim=1)
    # The last stage is the new state, since the last row of A is b. An overflow in a trial step
    # counts as an error too large.
    return stage, k[-1], torch.nan_to_num(error, nan=torch.inf)


def _combine(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(k), dim=-1) @ k[0].new_tensor(weights)


def _resize(h: Tensor, step: Tensor, error: Tensor, good: Tensor, tolerance: float) -> Tensor:
    """The next step sizes."""
    # The floor keeps the quotient finite where the error is zero.
    wanted = step * (0.9 * (tolerance / error.clamp(min=1e-300)) ** 0.2).clamp(0.2, 5.0)
    # A step cut short by an arrival says nothing against the size before it.
    return torch.where(good & (step < h), torch.maximum(h, wanted), wanted)
