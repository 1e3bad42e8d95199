"""The solver against SciPy's, and the two tasks that use it."""

import math

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import get_task, lotka_volterra, ode, sir
from sbi_jeffreys.tasks.ode import solve_ode
from scipy.integrate import solve_ivp


def test_exponential():
    theta = torch.tensor([[0.5], [-3.0], [0.0]], dtype=torch.float64)
    y = torch.ones(3, 1, dtype=torch.float64)
    states = solve_ode(lambda y, theta: theta * y, y, theta, (0.0, 0.5, 2.0))
    exact = (theta * torch.tensor([0.0, 0.5, 2.0])).exp()[..., None]
    torch.testing.assert_close(states, exact, rtol=0, atol=1e-6)


def test_gradient():
    theta = torch.tensor([[0.5], [-1.0]], dtype=torch.float64, requires_grad=True)
    y = torch.ones(2, 1, dtype=torch.float64)
    states = solve_ode(lambda y, theta: theta * y, y, theta, (0.0, 2.0))
    (gradient,) = torch.autograd.grad(states[:, 1].sum(), theta)
    torch.testing.assert_close(gradient, 2 * (2 * theta.detach()).exp(), rtol=1e-5, atol=0)


def test_a_batch_changes_nothing():
    theta, _ = get_task("lotka_volterra").simulate(4, generator=torch.Generator().manual_seed(0))
    together = lotka_volterra.log_populations(theta)
    alone = torch.cat([lotka_volterra.log_populations(t[None]) for t in theta])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["sir", "lotka_volterra"])
def test_nothing_to_solve(name):
    task = get_task(name)
    assert task.simulator(torch.empty(0, task.dim_theta)).shape == (0, task.dim_x)


@pytest.mark.parametrize("name", ["sir", "lotka_volterra"])
def test_parameters_that_are_no_numbers_are_refused(name):
    task = get_task(name)
    theta = task.true_parameters(1).repeat(3, 1)
    theta[1, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 3 rows of theta hold NaN or inf"):
        task.simulator(theta)


@pytest.mark.parametrize(("name", "entry"), [("sir", -1.0), ("lotka_volterra", 0.0)])
def test_impossible_data(name, entry):
    task = get_task(name)
    x = task.observation(1)
    x[0, 3] = entry
    assert task.log_likelihood(task.true_parameters(1), x).tolist() == [-math.inf]
    with pytest.raises(RuntimeError, match="this observation is impossible"):
        task.reference_posterior(x, 10)


def test_too_many_steps(monkeypatch):
    monkeypatch.setattr(ode, "MAX_STEPS", 3)
    with pytest.raises(RuntimeError, match="not solved in 3 steps"):
        get_task("sir").simulate(2)


def solve_sir(theta):
    """log(I / N) by SciPy, from the equations for S and I themselves."""

    def f(t, y):
        infections = theta[0] * y[0] * y[1] / 1e6
        return [-infections, infections - theta[1] * y[1]]

    times = np.arange(0, 161, 17)
    solution = solve_ivp(
        f, (0, 153), [1e6 - 1, 1], method="DOP853", rtol=1e-10, atol=1e-10, t_eval=times
    )
    return np.log(solution.y[1] / 1e6)


def solve_lotka_volterra(theta):
    """The log-populations by SciPy, of which X and Y themselves lose digits near extinction."""
    alpha, beta, gamma, delta = theta

    def f(t, y):
        return [alpha - beta * np.exp(y[1]), delta * np.exp(y[0]) - gamma]

    times = 0.1 * np.arange(0, 201, 21)
    solution = solve_ivp(
        f, (0, times[-1]), np.log([30, 1]), method="DOP853", rtol=1e-12, atol=1e-12, t_eval=times
    )
    return solution.y.reshape(-1).clip(np.log(1e-10), np.log(1e4))


@pytest.mark.parametrize(
    ("name", "ours", "scipys"),
    [
        ("sir", sir.infectious, solve_sir),
        ("lotka_volterra", lotka_volterra.log_populations, solve_lotka_volterra),
    ],
)
def test_against_scipy(name, ours, scipys):
    theta, _ = get_task(name).simulate(100, generator=torch.Generator().manual_seed(1))
    exact = np.stack([scipys(t) for t in theta.double().numpy()])
    # The noise has standard deviation 0.1 (Lotka-Volterra) or at least 0.03 (SIR) on this scale.
    assert np.abs(ours(theta).numpy() - exact).max() < 1e-5


def test_epidemic_that_dies_out_has_a_finite_likelihood():
    task = get_task("sir")
    theta = torch.tensor([[0.01, 2.0]], requires_grad=True)
    x = torch.zeros(1, 10)
    log_p = task.log_likelihood(theta, x)
    log_p.sum().backward()
    assert math.isclose(float(log_p.detach()), 1000 * math.log1p(-1e-6), rel_tol=0.1)
    assert theta.grad.isfinite().all()
