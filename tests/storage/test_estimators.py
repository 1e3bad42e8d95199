"""What a file holds of a posterior, and what is refused when it is saved or loaded."""

import pytest
import torch
from posteriors import BOX, NAMED, assert_same, train
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets import posterior_nn
from torch import nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Independent,
    Normal,
    TransformedDistribution,
    VonMises,
)

from sbi_jeffreys import load, save
from sbi_jeffreys.proxy import PairMLP
from sbi_jeffreys.storage.distributions import describe_distribution, rebuild_distribution

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")  # nflows


def test_a_posterior_keeps_how_it_samples(tmp_path):
    estimator = train(spec=NAMED).posterior_estimator
    save(
        DirectPosterior(estimator, BOX, max_sampling_batch_size=123, enable_transform=False),
        tmp_path / "posterior",
    )
    loaded = load(tmp_path / "posterior")
    assert loaded.max_sampling_batch_size == 123
    assert loaded.enable_transform is False


@pytest.mark.parametrize("training", [False, True])
def test_saving_changes_neither_the_model_nor_the_random_numbers(training, tmp_path):
    original = train(spec=NAMED)
    original.posterior_estimator.train(training)
    before = torch.get_rng_state()
    save(original, tmp_path / "posterior")
    assert torch.equal(torch.get_rng_state(), before)
    assert original.posterior_estimator.training is training


def test_an_estimator_with_dropout_is_saved_while_it_trains(tmp_path):
    torch.manual_seed(0)
    theta = BOX.sample((60,))
    estimator = posterior_nn("nsf", dropout_probability=0.5)(theta, theta + 1.0)
    estimator.spec = {
        "density_estimator": "nsf",
        "density_estimator_kwargs": {"dropout_probability": 0.5},
    }
    save(estimator.train(), tmp_path / "estimator")
    loaded = load(tmp_path / "estimator")
    estimator.eval()
    expected = estimator.log_prob(theta[None], theta + 1.0)
    assert torch.equal(loaded.log_prob(theta[None], theta + 1.0), expected)


def test_what_would_not_load_is_not_saved(tmp_path):
    """Of the same shapes, but other splines than the name says."""
    torch.manual_seed(0)
    theta = BOX.sample((60,))
    estimator = posterior_nn("nsf", tail_bound=1.0)(theta, theta + 1.0)
    with pytest.raises(ValueError, match="flow does not reproduce the saved one"):
        save(estimator, tmp_path / "estimator", density_estimator="nsf")
    assert list(tmp_path.iterdir()) == []


class Scaled(PairMLP):
    factor = 1.0

    def forward(self, theta, context):
        return self.factor * super().forward(theta, context)


class Doubled(Scaled):
    factor = 2.0


def test_another_proxy_of_the_same_shapes_is_noticed(tmp_path):
    original = train(spec={"density_estimator": "coupling_nsf"}, proxy=Scaled)
    for parameter in original.posterior_estimator.proxy.network.parameters():
        nn.init.normal_(parameter)
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior", build_proxy=Scaled), original, torch.ones(1, 3))
    with pytest.raises(ValueError, match="proxy does not reproduce the saved one"):
        load(tmp_path / "posterior", build_proxy=Doubled)


def test_a_prior_that_only_the_proxy_needs_is_taken(tmp_path):
    prior = Independent(VonMises(torch.zeros(2), torch.ones(2)), 1)
    original = DirectPosterior(train(prior, NAMED).posterior_estimator, BOX)
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior", prior=prior)
    assert_same(loaded, original, torch.ones(1, 3))
    assert torch.equal(loaded.prior.base_dist.high, BOX.base_dist.high)


def test_parameters_of_a_beta_distribution_are_held():
    prior = Independent(Beta(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 4.0])), 1)
    tensors = {}
    entry = describe_distribution(prior, "prior", tensors)
    theta = torch.rand(5, 2)
    found = rebuild_distribution(entry, "prior", tensors, None)
    assert torch.equal(found.log_prob(theta), prior.log_prob(theta))


class Shift(AffineTransform):
    """A transform of the user's, with a scale of its own."""

    def _call(self, x):
        return super()._call(2 * x)


def test_transforms_that_derive_from_ours_are_not_held():
    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    entry = describe_distribution(TransformedDistribution(base, Shift(0.0, 1.0)), "prior", {})
    assert entry == {"name": "TransformedDistribution", "missing": True}
