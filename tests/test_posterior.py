"""Posteriors of densities that cannot leak are not searched for leakage."""

import copy
import pickle

import pytest
import torch
from sbi.inference import EnsemblePosterior
from sbi.inference.posteriors import DirectPosterior
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior
from torch.distributions import Beta, Gamma, Independent, MultivariateNormal, Normal, Uniform
from trainers import make

import sbi_jeffreys
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.posterior import NoLeakage, is_contained

ONE = torch.ones(1)
BOX = BoxUniform(-torch.ones(2), torch.ones(2))
NORMAL = MultivariateNormal(torch.zeros(2), torch.eye(2))
MIXED = MultipleIndependent([Uniform(-ONE, ONE), Normal(0 * ONE, ONE)])
SKEWED = MultipleIndependent([Beta(ONE, ONE), Gamma(ONE, ONE)])
HALF = RestrictedPrior(BOX, lambda theta: theta[:, 0] > 0, sample_with="rejection")


def flow(prior):
    torch.manual_seed(0)
    theta = prior.sample((50,))
    return flow_nn(prior)(theta, theta + torch.randn(50, 2))


@pytest.mark.parametrize(
    ("walls", "prior", "contained"),
    [
        (BOX, BOX, True),
        (NORMAL, NORMAL, True),
        (MIXED, MIXED, True),
        (SKEWED, SKEWED, True),
        (BOX, NORMAL, True),
        (BOX, BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)), True),
        (BOX, BoxUniform(-torch.ones(2), 0.5 * torch.ones(2)), False),
        (NORMAL, BOX, False),
        # To sbi its support is that of what it restricts.
        (BOX, HALF, True),
        (BOX, Independent(Gamma(torch.ones(2), torch.ones(2)), 1), False),
    ],
)
def test_where_there_is_no_leakage(walls, prior, contained):
    assert is_contained(flow(walls), prior) is contained


def test_a_prior_without_a_support_is_not_known():
    class Prior:
        """As a user may write it."""

    assert not is_contained(flow(BOX), Prior())


@pytest.mark.parametrize(
    ("density_estimator", "contained"), [("coupling_nsf", True), ("maf", False)]
)
def test_a_posterior_is_corrected_where_it_leaks(density_estimator, contained, tmp_path):
    torch.manual_seed(1)
    theta = BOX.sample((100,))
    trainer = make(density_estimator, prior=BOX)
    trainer.append_simulations(theta, theta + torch.randn(100, 2)).train(max_num_epochs=2)
    posterior = trainer.build_posterior()
    sbi_jeffreys.save(posterior, tmp_path / "posterior")
    loaded = sbi_jeffreys.load(tmp_path / "posterior")
    for each in (
        posterior,
        loaded,
        copy.deepcopy(posterior),
        pickle.loads(pickle.dumps(posterior)),
    ):
        assert isinstance(each.leakage_correction, NoLeakage) is contained
        x = torch.zeros(3, 2)
        # As sbi has it, in shape and type; of the default flow in value, too.
        found = each.leakage_correction(x[:1])
        expected = DirectPosterior.leakage_correction(each, x[:1])
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert expected.item() == 1.0 if contained else expected.item() < 1.0
        batch = each.log_prob_batched(theta[:5, None].expand(-1, 3, -1), x)
        assert batch.shape == (5, 3)
        plain = each.log_prob(theta[:5], x[:1], norm_posterior=False)
        corrected = each.log_prob(theta[:5], x[:1])
        assert torch.equal(plain, corrected) is contained
    alone = trainer.build_posterior(trainer._neural_net.flow)
    assert isinstance(alone.leakage_correction, NoLeakage) is contained
    # Ensembles of sbi's want members of one type, whatever the first is.
    plain = DirectPosterior(trainer._neural_net, BOX)
    for members in ([posterior, plain], [plain, posterior]):
        assert EnsemblePosterior(members).log_prob(theta[:3], x=x[:1]).shape == (3,)
