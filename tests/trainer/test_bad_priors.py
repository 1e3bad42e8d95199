"""Priors that will not do are refused; odd ones work, and theta outside of one is told of."""

import warnings

import pytest
import torch
from sbi.utils import MultipleIndependent, RestrictedPrior
from torch.distributions import (
    Bernoulli,
    Dirichlet,
    Distribution,
    ExpTransform,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    TransformedDistribution,
    Uniform,
    constraints,
)
from trainers import PRIOR, THETA, X, make, usable


class WithoutDensity(Distribution):
    support = constraints.real_vector
    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(event_shape=torch.Size((2,)))

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return torch.randn(*sample_shape, 2)


PRIORS = {
    "no density": (WithoutDensity(), TypeError, ("WithoutDensity", "log_prob", "prior=None")),
    "scalar": (Normal(0.0, 1.0), ValueError, ("scalar", "Normal", "BoxUniform")),
    "batch of vectors": (
        MultivariateNormal(torch.zeros(2, 2), torch.eye(2)),
        ValueError,
        ("batch_shape",),
    ),
    "no distribution": (lambda n: n, TypeError, ("function", "process_prior", "prior=None")),
    "list": ([PRIOR], TypeError, ("list", "process_prior")),
    "a coin": (Independent(Bernoulli(0.5 * torch.ones(2)), 1), ValueError, ("discrete", "logit")),
    "a count and a number": (
        MultipleIndependent([Poisson(torch.ones(1)), Normal(torch.zeros(1), torch.ones(1))]),
        ValueError,
        ("discrete", "continuous parameter in its place"),
    ),
    "a simplex": (
        Dirichlet(torch.ones(3)),
        ValueError,
        ("Dirichlet", "3 numbers", "2 tell the rest", "StickBreakingTransform"),
    ),
    "a simplex and a number": (
        MultipleIndependent([Dirichlet(torch.ones(3)), Normal(torch.zeros(1), torch.ones(1))]),
        ValueError,
        ("support", "Dirichlet", "logits"),
    ),
}


@pytest.mark.parametrize("case", PRIORS)
def test_priors_are_refused(case):
    prior, error, parts = PRIORS[case]
    with pytest.raises(error) as caught:
        make(prior=prior)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.ones(2, dtype=torch.float64)])
def test_unbounded_and_double_priors_work(scale):
    prior = Independent(Normal(torch.zeros_like(scale), scale), 1)
    trainer = make("coupling_nsf", prior=prior)
    trainer.append_simulations(THETA, X).train(max_num_epochs=1)
    assert usable(trainer)


def test_a_restricted_prior_is_looked_at_in_silence(capfd):
    prior = RestrictedPrior(PRIOR, lambda theta: theta[:, 0] > 0, sample_with="rejection")
    make(prior=prior)
    # sbi's trainer looks at it once more.
    assert capfd.readouterr().out.count("RestrictedPrior") <= 1


@pytest.mark.parametrize("estimator", ["coupling_nsf", "mdn"])
@pytest.mark.parametrize("seed", range(3))
def test_theta_outside_the_prior_is_kept_with_a_warning(estimator, seed):
    theta = 1.5 * THETA
    outside = ((theta.abs() > 1).any(dim=1)).float().mean().item()
    assert outside > 0.3
    trainer = make(estimator, seed=seed)
    with pytest.warns(UserWarning, match=f"{outside:.1%} of theta lie outside.*check that the pri"):
        trainer.append_simulations(theta, X)
    # Whatever the split: held-out parameters beyond all others have a density too.
    trainer.train(max_num_epochs=1)
    assert usable(trainer)


def test_theta_beyond_a_log_uniform_prior_has_a_density_and_a_warning():
    """Its support, as torch has it, is all positive numbers."""
    logarithm = Uniform(torch.full((2,), -5.0), torch.full((2,), 3.0))
    prior = Independent(TransformedDistribution(logarithm, ExpTransform()), 1)
    theta = prior.sample((60,))
    trainer = make("coupling_nsf", prior=prior)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.append_simulations(theta, X)
    theta[:6, 0] = 25.0
    with pytest.warns(UserWarning, match=r"10\.0% of theta lie outside"):
        trainer.append_simulations(theta, X)
    estimator = trainer.train(max_num_epochs=1, validation_data=(theta[:6], X[:6]))
    assert estimator.flow.log_prob(theta[None, :6], X[:6]).isfinite().all()
