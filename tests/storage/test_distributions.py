"""Files hold priors as users and sbi have them, and take others again."""

import json

import numpy as np
import pytest
import torch
from posteriors import BOX, NAMED, PRIORS, assert_same, built, rewrite, sbi_posterior, train
from sbi.utils import BoxUniform, process_prior
from torch.distributions import (
    AffineTransform,
    Exponential,
    ExpTransform,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
    VonMises,
)

from sbi_jeffreys import load, save
from sbi_jeffreys.storage.distributions import (
    describe_distribution,
    is_described,
    rebuild_distribution,
)


def box_by(transforms, dim=2):
    return TransformedDistribution(Uniform(torch.zeros(dim), torch.ones(dim)), transforms)


def plane_by(*transforms):
    base = Independent(Normal(torch.zeros(2), 0.3 * torch.ones(2)), 1)
    return TransformedDistribution(base, [*transforms])


WRAPPED = {
    "exponential": lambda: Exponential(torch.ones(1)),
    "uniform": lambda: Uniform(torch.zeros(1), torch.ones(1)),
    "gamma": lambda: Gamma(2 * torch.ones(1), torch.ones(1)),
    "log-normal": lambda: Independent(LogNormal(torch.zeros(2), 0.3 * torch.ones(2)), 1),
    "several": lambda: process_prior(
        [Exponential(torch.ones(1)), Normal(torch.zeros(1), torch.ones(1))]
    )[0],
    "log-uniform, one": lambda: box_by(ExpTransform(), dim=1),
    "log-uniform, inside": lambda: Independent(box_by(ExpTransform()), 1),
    "log-normal, outside": lambda: plane_by(ExpTransform()),
    "shifted": lambda: plane_by(
        AffineTransform(0.1, 0.7), ExpTransform(), AffineTransform(torch.ones(2), 2.0, event_dim=1)
    ),
    "correlated": lambda: TransformedDistribution(
        MultivariateNormal(torch.zeros(2), 0.5 * torch.eye(2) + 0.1), ExpTransform()
    ),
}


def assert_same_posterior(loaded, original):
    """Samples, densities and the prior's agree to the bit, in its bounds and beyond."""
    x = torch.ones(1, original.posterior_estimator.condition_shape[0])
    draws = []
    for posterior in (original, loaded):
        torch.manual_seed(1)
        draws.append(posterior.sample((50,), x=x, show_progress_bars=False))
    assert torch.equal(*draws)
    theta = torch.cat([draws[0], -1e3 - draws[0]])
    found, expected = (p.log_prob(theta, x=x, norm_posterior=False) for p in (loaded, original))
    assert torch.equal(found, expected)
    found, expected = (p.prior.log_prob(theta) for p in (loaded, original))
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def with_structure(path, change, version="3.1"):
    """Rewrite a file, with its structure changed, as another version."""

    def changed(metadata):
        # Older files do not say what was saved.
        del metadata["sha256"]
        structure = json.loads(metadata["structure"])
        change(structure)
        return metadata | {"structure": json.dumps(structure), "format_version": version}

    rewrite(path, changed)


ONE = torch.ones(2)
SEVERAL = {
    "Cauchy": (0 * ONE, 0.5 * ONE),
    "Gumbel": (0 * ONE, 0.5 * ONE),
    "HalfCauchy": (0.5 * ONE,),
    "HalfNormal": (0.5 * ONE,),
    "InverseGamma": (3 * ONE, 2 * ONE),
    "Laplace": (0 * ONE, 0.5 * ONE),
    "StudentT": (4 * ONE, 0 * ONE, 0.5 * ONE),
    "Weibull": (0.5 * ONE, 2 * ONE),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_distributions_of_torch_are_held(name):
    given = Independent(getattr(torch.distributions, name)(*SEVERAL[name]), 1)
    tensors = {}
    entry = describe_distribution(given, "prior", tensors)
    held = {key: value.clone() for key, value in tensors.items()}
    rebuilt = rebuild_distribution(json.loads(json.dumps(entry)), "prior", held, None)
    theta = given.sample((50,))
    assert torch.equal(rebuilt.log_prob(theta), given.log_prob(theta))
    assert type(rebuilt.base_dist) is type(given.base_dist)
    assert is_described(given, entry, "prior", held)


@pytest.mark.parametrize("prior", WRAPPED)
@pytest.mark.filterwarnings("ignore:Prior was provided as a sequence")
@pytest.mark.filterwarnings("ignore:Casting 1D Uniform prior")
@pytest.mark.filterwarnings("ignore:The passed discrete prior has no mean")
def test_priors_that_sbi_wraps_or_torch_transforms_are_held(prior, tmp_path):
    given = WRAPPED[prior]()
    original = built(given)
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert_same_posterior(loaded, original)
    assert type(loaded.prior) is type(original.prior)
    # In the user's own form too, as it was when files could not hold it.
    assert_same_posterior(load(tmp_path / "posterior", prior=given), original)


@pytest.mark.filterwarnings("ignore:The passed prior has no support property")
def test_the_prior_that_sbi_has_for_none_is_held(tmp_path):
    original = built(None, dim=2)
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert_same_posterior(loaded, original)
    assert torch.equal(loaded.prior.mean, original.prior.mean)
    assert torch.equal(loaded.prior.stddev, original.prior.stddev)
    with pytest.raises(ValueError, match=r"class ImproperEmpirical, .*leave prior= out"):
        load(tmp_path / "posterior", prior=BOX)


class Derived(ExpTransform):
    """A transform of the user's."""


UNHELD = {
    "one parameter": (lambda: VonMises(torch.zeros(1), torch.ones(1)), "VonMises"),
    "other transform": (lambda: plane_by(SigmoidTransform()), "TransformedDistribution"),
    "derived transform": (lambda: plane_by(Derived()), "TransformedDistribution"),
    "float64": (
        lambda: Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1),
        "PytorchReturnTypeWrapper",
    ),
}


@pytest.mark.parametrize("case", UNHELD)
def test_priors_that_no_file_holds_are_taken_in_the_form_in_which_the_trainer_took_them(
    case, tmp_path
):
    make, name = UNHELD[case]
    original = built(make())
    save(original, tmp_path / "posterior")
    with pytest.raises(ValueError, match=f"class {name}, .*prior="):
        load(tmp_path / "posterior")
    for prior in (make(), original.prior):
        assert_same_posterior(load(tmp_path / "posterior", prior=prior), original)


def test_a_prior_of_numpy_is_taken_again(tmp_path):
    class Plane:
        mean, variance = torch.zeros(2), torch.ones(2)

        def sample(self, shape=()):
            return torch.randn(*shape, 2).numpy()

        def log_prob(self, theta):
            return -0.5 * (np.asarray(theta) ** 2).sum(-1)

    bounds = {"lower_bound": -5 * torch.ones(2), "upper_bound": 5 * torch.ones(2)}
    prior = process_prior(Plane(), bounds)[0]
    original = built(prior)
    save(original, tmp_path / "posterior")
    assert_same_posterior(load(tmp_path / "posterior", prior=prior), original)
    with pytest.raises(TypeError, match=r"process_prior"):
        load(tmp_path / "posterior", prior=Plane())


@pytest.mark.parametrize("prior", ["exponential", "log-uniform, inside"])
def test_files_from_before_these_priors_were_held(prior, tmp_path):
    given = WRAPPED[prior]()
    original = built(given)
    save(original, tmp_path / "posterior")

    def forget(structure):
        entry = structure["posterior"]["prior"] | {"missing": True}
        structure["base"] = structure["posterior"]["prior"] = entry

    with_structure(tmp_path / "posterior", forget)
    with pytest.raises(ValueError, match="prior="):
        load(tmp_path / "posterior")
    assert_same_posterior(load(tmp_path / "posterior", prior=given), original)


def test_files_from_before_of_a_prior_that_was_held(tmp_path):
    original = built(BOX)
    save(original, tmp_path / "posterior")
    seen = []
    with_structure(tmp_path / "posterior", seen.append)
    # As it always was: what is passed beside a file is compared with this.
    assert seen[0]["posterior"]["prior"] == {"name": "BoxUniform", "validate": False}
    for given in ({}, {"prior": BOX}):
        assert_same_posterior(load(tmp_path / "posterior", **given), original)


@pytest.mark.parametrize(("prior", "known"), [("gamma", "Gamma"), ("shifted", "AffineTransform")])
@pytest.mark.filterwarnings("ignore:The passed discrete prior has no mean")
def test_files_with_a_prior_that_only_later_versions_know(prior, known, tmp_path):
    save(built(WRAPPED[prior]()), tmp_path / "posterior")

    def rename(structure):
        renamed = json.loads(json.dumps(structure).replace(f'"{known}"', '"OfTomorrow"'))
        structure.clear()
        structure.update(renamed)

    with_structure(tmp_path / "posterior", rename)
    with pytest.raises(ValueError, match=r"OfTomorrow, which this version .* update it"):
        load(tmp_path / "posterior")


OTHERS = {
    "bounds": (BoxUniform(-2 * torch.ones(2), 3 * torch.ones(2)), "BoxUniform"),
    "class": (PRIORS["mvn"], "MultivariateNormal"),
    "shape": (BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3)), "BoxUniform"),
    "one parameter": (VonMises(torch.zeros(1), torch.ones(1)), "VonMises"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_prior_that_would_be_ignored_is_refused(case, tmp_path):
    original = train(spec=NAMED)
    save(original, tmp_path / "posterior")
    prior, name = OTHERS[case]
    with pytest.raises(ValueError, match=f"class BoxUniform.*class {name}: leave prior= out"):
        load(tmp_path / "posterior", prior=prior)
    same = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    assert_same(load(tmp_path / "posterior", prior=same), original, torch.ones(1, 3))


def test_a_prior_for_an_estimator_alone(tmp_path):
    save(train(spec=NAMED).posterior_estimator, tmp_path / "joint")
    save(sbi_posterior("maf").posterior_estimator, tmp_path / "flow", density_estimator="maf")
    load(tmp_path / "joint", prior=BOX)
    with pytest.raises(ValueError, match=r"class BoxUniform, .*leave prior= out"):
        load(tmp_path / "joint", prior=PRIORS["mvn"])
    with pytest.raises(ValueError, match="needs no prior: leave prior= out"):
        load(tmp_path / "flow", prior=BOX)
