"""Priors as users bring them: sbi's wrappers of numpy, restricted ones, and where they are."""

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from sbi.utils import BoxUniform, MultipleIndependent, RestrictedPrior, process_prior
from sbi.utils.sbiutils import ImproperEmpirical
from torch.distributions import Exponential, Independent, MultivariateNormal, Normal, Uniform

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.inputs import priors
from sbi_jeffreys.utils.quiet import QuietTracker

pytestmark = pytest.mark.filterwarnings("ignore:No prior bounds were passed:UserWarning")

BOX = BoxUniform(-torch.ones(2), torch.ones(2))


class OfNumpy:
    """A normal distribution of two parameters that will not be asked for a gradient."""

    mean, variance = torch.tensor([0.5, -1.0]), torch.tensor([4.0, 0.25])

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def sample(self, shape=()):
        noise = self.generator.standard_normal((*shape, 2))
        return self.mean.numpy() + self.variance.sqrt().numpy() * noise

    def log_prob(self, theta):
        theta = torch.tensor(np.asarray(theta))
        return Normal(self.mean, self.variance.sqrt()).log_prob(theta).sum(-1).numpy()


def foreign():
    return process_prior(OfNumpy())[0]


def gradient(prior, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(priors.log_prob(prior, theta).sum(), theta)[0]


def test_a_prior_of_numpy_has_a_gradient():
    theta = torch.tensor([[1.9, -1.9], [0.5, -1.0], [-3.0, 0.0]])
    expected = (OfNumpy.mean - theta) / OfNumpy.variance
    # By differences in float32, in units of the prior's standard deviations.
    error = (gradient(foreign(), theta) - expected) * OfNumpy.variance.sqrt()
    assert error.abs().max() < 2e-3


def test_so_has_one_that_is_restricted():
    theta = torch.tensor([[1.9, -1.9]])
    prior = RestrictedPrior(foreign(), lambda theta: theta[:, 0] > 0, sample_with="rejection")
    expected = (OfNumpy.mean - theta) / OfNumpy.variance
    torch.testing.assert_close(gradient(prior, theta), expected, rtol=1e-2, atol=1e-2)


def test_the_gradient_at_a_bound_looks_inside():
    class Exponential(OfNumpy):
        mean, variance = torch.ones(1), torch.ones(1)

        def sample(self, shape=()):
            return self.generator.exponential(size=(*shape, 1))

        def log_prob(self, theta):
            inside = torch.tensor(np.asarray(theta))[..., 0]
            return torch.where(inside < 0, -torch.inf, -inside).numpy()

    prior = process_prior(
        Exponential(), {"lower_bound": torch.zeros(1), "upper_bound": 1e3 * torch.ones(1)}
    )[0]
    theta = torch.tensor([[0.0], [0.005], [2.0]])
    torch.testing.assert_close(gradient(prior, theta), -torch.ones(3, 1), rtol=1e-3, atol=1e-3)


def test_torch_differentiates_its_own():
    prior = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    theta = torch.randn(3, 2)
    expected = -theta @ prior.precision_matrix
    torch.testing.assert_close(gradient(prior, theta), expected, rtol=1e-5, atol=1e-6)


def test_the_mode_of_a_posterior_under_a_prior_of_numpy():
    trainer = JeffreysNPE(foreign(), seed=0, show_progress_bars=False, tracker=QuietTracker())
    theta = trainer._prior.sample((200,))
    x = theta + 0.2 * torch.randn(200, 2)
    estimator = trainer.append_simulations(theta, x).train(max_num_epochs=1)
    estimator.weight = 0.75
    posterior = trainer.build_posterior().set_default_x(torch.tensor([0.7, -0.8]))
    found = posterior.map(num_iter=50, num_init_samples=50, show_progress_bars=False)
    samples = posterior.sample((100,), show_progress_bars=False)
    # It is found by its gradient: no draw is better by more than the optimiser's tolerance.
    assert posterior.log_prob(found) > posterior.log_prob(samples).max() - 0.05


def test_a_restricted_prior_is_asked_in_silence(capfd):
    prior = RestrictedPrior(BOX, lambda theta: theta[:, 0] > 0, sample_with="rejection")
    assert (priors.draw(prior, 5)[:, 0] > 0).all()
    assert capfd.readouterr().out == ""


def test_what_stands_for_no_prior_is_none():
    assert priors.proper(None) is None
    assert priors.proper(ImproperEmpirical(torch.zeros(3, 2))) is None
    assert priors.proper(BOX) is BOX


def test_moving_leaves_the_users_prior_where_it_is(monkeypatch):
    with elsewhere(monkeypatch) as device:
        assert priors.moved(BOX, device).sample().device.type == device
        assert BOX.sample().device.type == "cpu"


class Positive(Normal):
    """A normal distribution that is cut off, by its own way of sampling alone."""

    def sample(self, sample_shape=()):
        return super().sample(sample_shape).abs()


class OfNumpysGlobal(OfNumpy):
    """The same, by the generator that scipy's distributions draw from, too."""

    def __init__(self):
        pass

    def sample(self, shape=()):
        noise = np.random.randn(*shape, 2)  # noqa: NPY002
        return self.mean.numpy() + self.variance.sqrt().numpy() * noise


def test_a_seed_holds_for_priors_of_numpy_and_leaves_its_generator_alone():
    prior = process_prior(OfNumpysGlobal())[0]
    theta = torch.randn(60, 2)
    before = np.random.get_state()[1:3]  # noqa: NPY002
    weights = []
    for _ in range(2):
        trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
        estimator = trainer.append_simulations(theta, theta**2).train(max_num_epochs=3)
        weights.append(torch.nn.utils.parameters_to_vector(estimator.parameters()))
    assert torch.equal(*weights)
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1]


DRAWN = {
    "box": lambda: BOX,
    "normal": lambda: MultivariateNormal(torch.ones(2), torch.eye(2)),
    "independent": lambda: Independent(Normal(torch.ones(2), torch.ones(2)), 1),
    "several": lambda: MultipleIndependent(
        [Normal(torch.ones(1), torch.ones(1)), Exponential(torch.ones(1))]
    ),
    "of one dimension": lambda: process_prior(Normal(torch.ones(1), torch.ones(1)))[0],
    "cut off": lambda: Independent(Positive(torch.zeros(2), torch.ones(2)), 1),
    "of numpy": foreign,
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_for_a_gpu_are_draws(name):
    """Means and spreads of 20,000, to five standard errors of a difference of two."""
    prior, num = DRAWN[name](), 20_000
    found, expected = priors.draw_on_gpu(prior, num), priors.draw(prior, num)
    assert found.shape == expected.shape
    assert not found.requires_grad
    assert name != "cut off" or found.amin() >= 0
    error = expected.std(dim=0) / num**0.5
    assert ((found.mean(dim=0) - expected.mean(dim=0)).abs() < 7 * error).all()
    # The fourth moment of an exponential is nine.
    assert ((found.std(dim=0) / expected.std(dim=0)).log().abs() < 7 * (9 / num) ** 0.5).all()


def doubles():
    low, high = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    prior = Independent(Uniform(low, high), 1)
    yield prior
    yield process_prior(prior)[0]
    yield MultipleIndependent([Uniform(low[:1], high[:1]), Uniform(low[:1], high[:1])])


@pytest.mark.parametrize("prior", list(doubles()), ids=["uniform", "wrapped", "multiple"])
def test_bounds_in_double_precision_make_posteriors(prior):
    before, theta = prior.sample((1,)).dtype, prior.sample((60,)).float()
    x = theta + 0.1 * torch.randn(60, 2)
    trainer = JeffreysNPE(prior, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta, x).train(max_num_epochs=1)
    for sample_with in ("direct", "mcmc"):
        posterior = trainer.build_posterior(sample_with=sample_with)
        assert posterior.potential(theta[:3], x=x[:1]).dtype == torch.float32
    # The user's own stays what it was.
    assert prior.sample((1,)).dtype == before


class WithoutSupport(torch.distributions.Distribution):
    """A prior of a user's own, in double precision."""

    def __init__(self):
        self.normal = Normal(torch.zeros(2).double(), torch.ones(2).double())
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)

    def sample(self, sample_shape=()):
        return self.normal.sample(sample_shape)

    def log_prob(self, value):
        return self.normal.log_prob(value).sum(-1)


def test_a_prior_in_double_precision_may_lack_a_support():
    assert priors.check_prior(WithoutSupport()).sample((3,)).dtype == torch.float32


def test_bounds_of_a_restricted_prior_are_in_single_precision():
    inner = next(doubles())
    restricted = RestrictedPrior(process_prior(inner)[0], lambda theta: theta[:, 0] > 0.5)
    checked = priors.check_prior(restricted)
    assert checked._prior.support.base_constraint.lower_bound.dtype == torch.float32
    assert (priors.draw(checked, 20)[:, 0] > 0.5).all()
    # The user's own stays what it was.
    assert inner.support.base_constraint.lower_bound.dtype == torch.float64
    assert restricted._prior is not checked._prior
