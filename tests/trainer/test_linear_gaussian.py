"""Linear Gaussian model: the exact posterior is known, and training must come near to it."""

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import Independent, MultivariateNormal, Normal

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.metrics import c2st
from sbi_jeffreys.utils.quiet import QuietTracker

NUM_SIMULATIONS = 5_000
NUM_SAMPLES = 1_000
NOISE = 0.5


def exact_posterior(matrix: torch.Tensor, x: torch.Tensor) -> MultivariateNormal:
    """Return the posterior of theta ~ N(0, 1), x ~ N(A theta, s^2), for A (d, d) and x (d,)."""
    matrix, x = matrix.double(), x.double()
    precision = torch.eye(len(x), dtype=torch.float64) + matrix.T @ matrix / NOISE**2
    mean = torch.linalg.solve(precision, matrix.T @ x / NOISE**2)
    return MultivariateNormal(mean, precision_matrix=precision)


def test_exact_posterior_against_the_joint():
    # log p(theta) + log p(x | theta) - log p(theta | x) is log p(x), whatever theta is.
    matrix, x = torch.randn(3, 3), torch.randn(3)
    theta = torch.randn(5, 3)
    joint = Normal(0.0, 1.0).log_prob(theta).sum(-1)
    joint = joint + Normal(theta @ matrix.T, NOISE).log_prob(x).sum(-1)
    evidence = joint - exact_posterior(matrix, x).log_prob(theta.double())
    # Float32 sums of numbers of order ten.
    torch.testing.assert_close(evidence, evidence[:1].expand(5), atol=1e-4, rtol=0)


@pytest.mark.full_fit
@pytest.mark.parametrize("seed", range(3))
def test_what_two_held_out_rows_happen_to_like_is_not_kept(seed):
    """Twenty simulations, two of them held out; the linear posterior that training begins with."""
    torch.manual_seed(1000 + seed)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta, truth = prior.sample((20,)), prior.sample((300,))
    x, x_o = (each + 0.2 * torch.randn(len(each), 2) for each in (theta, truth))
    trainer = JeffreysNPE(
        prior, objective="ml", seed=seed, show_progress_bars=False, tracker=QuietTracker()
    )
    estimator = trainer.append_simulations(theta, x).train()
    with torch.no_grad():
        nll = -estimator.log_prob(truth.unsqueeze(0), x_o)[0].mean()
    # -0.49 to -0.27 with seeds 0 to 5, and 5.58 with seed 0 where a standard error is enough.
    assert nll < 0


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 10])
def test_c2st_against_the_exact_posterior(dim):
    prior = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
    # Mixing neighbours correlates the parameters.
    matrix = torch.eye(dim) + 0.5 * torch.diag(torch.ones(dim - 1), 1)
    theta = prior.sample((NUM_SIMULATIONS,))
    x = theta @ matrix.T + NOISE * torch.randn(NUM_SIMULATIONS, dim)
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta, x).train()
    posterior = trainer.build_posterior()
    scores = []
    for _ in range(3):
        truth = prior.sample()
        x_o = matrix @ truth + NOISE * torch.randn(dim)
        found = posterior.sample((NUM_SAMPLES,), x=x_o, show_progress_bars=False)
        exact = exact_posterior(matrix, x_o).sample((NUM_SAMPLES,)).float()
        scores.append(c2st(found, exact, seed=0))
    # Equal distributions score one half, give or take 0.011 with 2,000 samples classified.
    assert sum(scores) / len(scores) < 0.55
