"""Saved posteriors come back the same, and bad files are refused with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sbi.inference import NPE
from sbi.inference.posteriors import DirectPosterior, MCMCPosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform, MultipleIndependent, process_prior
from torch import nn
from torch.distributions import (
    AffineTransform,
    Exponential,
    ExpTransform,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import PairMLP
from sbi_jeffreys.quiet import QuietTracker

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")  # nflows

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


@pytest.mark.parametrize("prior", PRIORS)
def test_round_trip_for_priors(prior, tmp_path):
    original = train(PRIORS[prior])
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert_same(loaded, original, torch.ones(1, 3))
    assert type(loaded.prior) is type(original.prior)


@pytest.mark.parametrize("name", ["maf", "nsf", "mdn", "made", "maf_rqs", "zuko_nsf", "zuko_maf"])
@pytest.mark.parametrize("joint", [False, True], ids=["plain", "joint"])
def test_round_trip_for_sbi_estimators(name, joint, tmp_path):
    if joint:
        original = train(spec=NAMED | {"density_estimator": name}, density_estimator=name)
        save(original, tmp_path / "posterior")
    else:
        original = sbi_posterior(name)
        save(original, tmp_path / "posterior", density_estimator=name)
    size = original.posterior_estimator.condition_shape[0]
    assert_same(load(tmp_path / "posterior"), original, torch.ones(1, size))


def test_round_trip_without_proxy_and_with_keyword_arguments(tmp_path):
    kwargs = {"hidden_features": 16, "num_transforms": 2}
    original = train(
        spec={"density_estimator": "coupling_nsf", "density_estimator_kwargs": kwargs},
        density_estimator=flow_nn(BOX, **kwargs),
        objective="ml",
    )
    original.set_default_x(torch.ones(1, 3))
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert_same(loaded, original, torch.ones(1, 3))
    assert torch.equal(loaded.default_x, original.default_x)


def test_round_trip_of_the_flow_alone(tmp_path):
    theta = BOX.sample((60,))
    trainer = JeffreysNPE(BOX, seed=0, show_progress_bars=False, tracker=QuietTracker())
    estimator = trainer.append_simulations(theta, theta + 1.0).train(max_num_epochs=1)
    original = trainer.build_posterior(estimator.flow)
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior"), original, torch.ones(1, 2))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.* to write posterior"):
        save(sbi_posterior("maf"), tmp_path / "nowhere" / "posterior", density_estimator="maf")


def test_round_trip_of_what_npe_trains(tmp_path):
    torch.manual_seed(0)
    trainer = NPE(BOX, show_progress_bars=False, tracker=QuietTracker())
    theta = BOX.sample((60,))
    trainer.append_simulations(theta, theta + 1.0).train(max_num_epochs=1)
    original = trainer.build_posterior()
    save(original, tmp_path / "posterior", density_estimator="maf")
    assert_same(load(tmp_path / "posterior"), original, torch.ones(1, 2))


def test_estimator_alone(tmp_path):
    original = train(spec=NAMED).posterior_estimator
    save(original, tmp_path / "estimator")
    loaded = load(tmp_path / "estimator")
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert not loaded.training


def embedded(theta, x):
    return flow_nn(BOX, embedding_net=nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))(theta, x)


def wide(theta, context):
    return PairMLP(theta, context, hidden_features=8)


def test_builders_are_taken_again(tmp_path):
    original = train(x_shape=(3, 4), density_estimator=embedded, proxy=wide)
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior", build=embedded, build_proxy=wide)
    assert_same(loaded, original, torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match="build="):
        load(tmp_path / "posterior")
    with pytest.raises(ValueError, match="build_proxy="):
        load(tmp_path / "posterior", build=embedded)
    with pytest.raises(ValueError, match="do not fit"):
        load(tmp_path / "posterior", build=flow_nn(BOX), build_proxy=wide)


def test_other_builder_of_the_same_shapes_is_noticed(tmp_path):
    class Scaled(nn.Linear):
        def __init__(self, factor):
            super().__init__(3, 3)
            self.factor = factor

        def forward(self, x):
            return self.factor * super().forward(x)

    def build(factor):
        return lambda theta, x: flow_nn(BOX, embedding_net=Scaled(factor))(theta, x)

    save(train(density_estimator=build(1.0), objective="ml"), tmp_path / "posterior")
    load(tmp_path / "posterior", build=build(1.0))
    with pytest.raises(ValueError, match="does not reproduce"):
        load(tmp_path / "posterior", build=build(5.0))


def test_other_priors_are_taken_again(tmp_path):
    prior = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
    original = train(prior, NAMED)
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior", prior=prior), original, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"class Laplace, .*prior="):
        load(tmp_path / "posterior")


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
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    structure = json.loads(metadata["structure"])
    change(structure)
    metadata |= {"structure": json.dumps(structure), "format_version": version}
    save_file(tensors, path, metadata)


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
    "one parameter": (lambda: Laplace(torch.zeros(1), torch.ones(1)), "Laplace"),
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
    with_structure(tmp_path / "posterior", lambda _: None)
    assert_same_posterior(load(tmp_path / "posterior"), original)


OTHERS = {
    "bounds": (BoxUniform(-2 * torch.ones(2), 3 * torch.ones(2)), "BoxUniform"),
    "class": (PRIORS["mvn"], "MultivariateNormal"),
    "shape": (BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3)), "BoxUniform"),
    "one parameter": (Laplace(torch.zeros(1), torch.ones(1)), "Laplace"),
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


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    save(train(spec=NAMED), tmp_path / "posterior")
    before = torch.get_rng_state()
    load(tmp_path / "posterior")
    assert torch.equal(torch.get_rng_state(), before)


def test_file_holds_versions_and_nothing_else_is_left(tmp_path):
    save(train(spec=NAMED), tmp_path / "posterior")
    save(train(spec=NAMED), tmp_path / "posterior")
    assert list(tmp_path.iterdir()) == [tmp_path / "posterior"]
    with safe_open(tmp_path / "posterior", "pt") as file:
        metadata = file.metadata()
    assert set(json.loads(metadata["versions"])) == {"sbi_jeffreys", "sbi", "zuko", "torch"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "posterior"
    save(train(spec=NAMED), path)
    return path.read_bytes()


def with_version(version):
    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() | {"format_version": version}
        save_file({"a": torch.zeros(1)}, path, metadata)

    return write


def cut(size):
    return lambda path, content: path.write_bytes(content[:size])


BAD_FILES = {
    "newer major version": (with_version("4.0"), ValueError, "newer than 3"),
    "older default flow": (with_version("1.0"), ValueError, "format 1.0.*Train and save again"),
    "version that is none": (with_version("new"), ValueError, "has format new"),
    "truncated tensors": (cut(-10), ValueError, "truncated"),
    "truncated header": (cut(100), ValueError, "truncated"),
    "empty": (cut(0), ValueError, "truncated"),
    "not safetensors": (
        lambda path, _: path.write_text("theta,x\n1,2\n"),
        ValueError,
        "no file of sbi_jeffreys",
    ),
    "another's safetensors": (
        lambda path, _: save_file({"a": torch.zeros(1)}, path),
        ValueError,
        r"not one that sbi_jeffreys.save\(\) wrote",
    ),
    "missing": (lambda path, _: None, FileNotFoundError, "no file"),
    "folder": (lambda path, _: path.mkdir(), FileNotFoundError, "no file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, saved, tmp_path):
    write, exception, message = BAD_FILES[case]
    write(tmp_path / "file", saved)
    with pytest.raises(exception, match=message):
        load(tmp_path / "file")


def test_older_files_of_other_flows_are_read(tmp_path):
    path = tmp_path / "posterior"
    save(sbi_posterior("maf"), path, density_estimator="maf")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | {"format_version": "1.0"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    assert isinstance(load(path), DirectPosterior)


def test_older_files_of_other_flows_with_the_default_proxy_are_refused(tmp_path):
    path = tmp_path / "posterior"
    save(train(spec=NAMED | {"density_estimator": "mdn"}, density_estimator="mdn"), path)
    with_version("2.0")(path, path.read_bytes())
    with pytest.raises(ValueError, match=r"format 2\.0.*'likelihood'.*Train and save again"):
        load(path)


def mcmc(posterior):
    return MCMCPosterior(posterior.potential_fn, BOX)


BAD_SAVES = {
    "other posterior": (lambda: mcmc(sbi_posterior("maf")), {}, TypeError, "MCMCPosterior"),
    "no posterior": (lambda: nn.Linear(2, 2), {}, TypeError, "Linear"),
    "unknown name": (
        lambda: sbi_posterior("maf"),
        {"density_estimator": "fam"},
        ValueError,
        "Unknown density_estimator 'fam'",
    ),
    "wrong name": (
        lambda: sbi_posterior("maf"),
        {"density_estimator": "nsf"},
        ValueError,
        "do not fit",
    ),
    "no folder": (lambda: sbi_posterior("mdn"), {}, FileNotFoundError, "nowhere"),
}


@pytest.mark.parametrize("case", BAD_SAVES)
def test_bad_saves(case, tmp_path):
    make, kwargs, exception, message = BAD_SAVES[case]
    with pytest.raises(exception, match=message):
        save(make(), tmp_path / "nowhere" / "posterior", **kwargs)
    assert list(tmp_path.iterdir()) == []
