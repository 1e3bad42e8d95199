"""Small posteriors to save, and files to change, for tests of files."""

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import (
    Exponential,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.utils.quiet import QuietTracker

__all__ = ["BOX", "NAMED", "PRIORS", "assert_same", "built", "rewrite", "sbi_posterior", "train"]

BOX = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
PRIORS = {
    "box": BOX,
    "mvn": MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.3], [0.3, 0.7]])),
    "independent": Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    "lognormal": Independent(LogNormal(torch.zeros(2), 0.3 * torch.ones(2)), 1),
    "uniform": Independent(Uniform(torch.zeros(2), torch.ones(2)), 1),
    "multiple": MultipleIndependent(
        [Gamma(torch.ones(1), torch.ones(1)), Exponential(torch.ones(1))]
    ),
    "none": None,
}


def train(prior=BOX, spec=None, x_shape=(3,), **kwargs):
    torch.manual_seed(0)
    theta = torch.rand(60, 2) if prior is None else prior.sample((60,))
    x = theta.sum(1).reshape(-1, *[1] * len(x_shape)) + torch.randn(60, *x_shape)
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker(), **kwargs)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=1)
    if spec is not None:
        estimator.spec = spec
    return DirectPosterior(estimator, BOX if prior is None else prior)


def built(prior, dim=1):
    """A posterior as the trainer builds it: with the prior as sbi has wrapped it."""
    torch.manual_seed(0)
    theta = torch.rand(60, dim) if prior is None else prior.sample((60,))
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta, theta + torch.randn(60, theta.shape[1]))
    trainer.train(max_num_epochs=1)
    return trainer.build_posterior()


def sbi_posterior(name, prior=BOX):
    torch.manual_seed(0)
    theta = prior.sample((60,))
    estimator = posterior_nn(name)(theta, theta + 1.0)
    return DirectPosterior(estimator, prior)


def assert_same(loaded, original, x):
    """Densities and samples agree to the bit, of the posterior, the flow and the proxy."""
    theta = original.prior.sample((4,))
    new, old = loaded.posterior_estimator, original.posterior_estimator
    condition = x.expand(4, *x.shape[1:])
    assert torch.equal(new.log_prob(theta[None], condition), old.log_prob(theta[None], condition))
    if getattr(old, "proxy", None) is not None:
        points = torch.cat([theta, 1e3 + theta])[None]  # inside of the prior and outside
        condition = x.expand(8, *x.shape[1:])
        assert torch.equal(
            new.proxy.log_prob_unnormalized(points, condition),
            old.proxy.log_prob_unnormalized(points, condition),
        )
        assert torch.equal(new.proxy.base.floor, old.proxy.base.floor)
    draws = []
    for posterior in (original, loaded):
        torch.manual_seed(1)
        draws.append(posterior.sample((20,), x=x[:1], show_progress_bars=False))
    assert torch.equal(*draws)


NAMED = {"density_estimator": "coupling_nsf", "proxy": "likelihood"}


def rewrite(path, change):
    """Write a file again, with the metadata that a function makes of its own."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, change(metadata))
