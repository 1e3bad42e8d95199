"""Saved posteriors come back the same, and bad files are refused with a reason."""

import json
from pathlib import Path

import pytest
import torch
from posteriors import BOX, NAMED, PRIORS, assert_same, rewrite, sbi_posterior, train
from safetensors import safe_open
from safetensors.torch import save_file
from sbi.inference import NPE
from sbi.inference.posteriors import DirectPosterior, MCMCPosterior
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Beta, Independent, VonMises

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.proxy import PairMLP, proxy_nn
from sbi_jeffreys.utils.quiet import QuietTracker

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")  # nflows


@pytest.mark.parametrize("prior", PRIORS)
def test_round_trip_for_priors(prior, tmp_path):
    original = train(PRIORS[prior])
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert_same(loaded, original, torch.ones(1, 3))
    assert type(loaded.prior) is type(original.prior)
    # What was loaded can be saved.
    save(loaded, tmp_path / "again")
    assert_same(load(tmp_path / "again"), original, torch.ones(1, 3))


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
    loaded = load(tmp_path / "posterior")
    assert_same(loaded, original, torch.ones(1, size))
    save(loaded, tmp_path / "again")
    assert_same(load(tmp_path / "again"), original, torch.ones(1, size))


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_in_another_order_in_memory_are_saved(seed, tmp_path):
    """zuko's layers return views, at which the last digits of a density are others."""
    prior = BoxUniform(-torch.ones(5), torch.ones(5))
    theta = prior.sample((150,))
    trainer = JeffreysNPE(
        prior, "zuko_nsf", seed=seed, show_progress_bars=False, tracker=QuietTracker()
    )
    trainer.append_simulations(theta, theta + 0.1 * torch.randn(150, 5)).train(max_num_epochs=1)
    original = trainer.build_posterior()
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior"), original, torch.zeros(1, 5))


def test_views_of_single_numbers_are_saved(tmp_path):
    """A Beta has its parameters in a table, of which one number has the strides."""
    prior = Beta(torch.tensor([2.0]), torch.tensor([3.0]))
    theta = prior.sample((60,))
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta, theta + 0.1 * torch.randn(60, 1)).train(max_num_epochs=1)
    original = trainer.build_posterior().set_default_x(torch.rand(5, 3)[:1, 0])
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert torch.equal(loaded.default_x, original.default_x)
    assert torch.equal(loaded.log_prob(theta[:5]), original.log_prob(theta[:5]))


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


@pytest.mark.parametrize("num_layers", [0, 3])
def test_a_file_says_how_many_gaussians_and_layers_the_proxy_has(num_layers, tmp_path):
    """Files from before today's defaults have three of both, and say nothing of it but this."""
    sizes = {"num_components": 3, "hidden_layers": num_layers}
    original = train(spec=NAMED, proxy=proxy_nn("likelihood", **sizes))
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    assert loaded.posterior_estimator.proxy.network.num_components == 3
    assert_same(loaded, original, torch.ones(1, 3))


def test_a_file_holds_no_sharpness_but_weights_that_say_the_same(tmp_path):
    """So programs read it that know of none, and files without it are read."""
    original = train(spec=NAMED)
    with torch.no_grad():
        original.posterior_estimator.proxy.network.of_theta.sharpness.normal_(std=0.05)
    save(original, tmp_path / "posterior")
    with safe_open(tmp_path / "posterior", "pt") as file:
        assert not [name for name in file.keys() if "sharpness" in name]  # noqa: SIM118
    loaded = load(tmp_path / "posterior")
    assert not loaded.posterior_estimator.proxy.network.of_theta.sharpness.any()
    assert_same(loaded, original, torch.ones(1, 3))


def test_a_file_holds_the_floor_of_the_base(tmp_path):
    """Before format 3.8 the floor followed from the anchor, and was another."""
    original = train()
    floor = original.posterior_estimator.proxy.base.floor
    floor -= 1.0
    save(original, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior")
    base, before = (p.posterior_estimator.proxy.base for p in (loaded, original))
    assert torch.equal(base.floor, floor)
    assert torch.equal(base.units, before.units)
    far = torch.full((1, before.units.shape[1]), 100.0)
    assert torch.equal(base.log_prob_soft(far), before.log_prob_soft(far))


def test_round_trip_of_the_flow_alone(tmp_path):
    theta = BOX.sample((60,))
    trainer = JeffreysNPE(BOX, seed=0, show_progress_bars=False, tracker=QuietTracker())
    estimator = trainer.append_simulations(theta, theta + 1.0).train(max_num_epochs=1)
    original = trainer.build_posterior(estimator.flow)
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior"), original, torch.ones(1, 2))


@pytest.mark.parametrize("name", ["", "folder"])
def test_a_folder_is_no_file(name, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        save(train(spec=NAMED), name)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_link_keeps_pointing_to_what_is_saved(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "posterior")
    save(train(spec=NAMED), link)
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["posterior"]
    assert isinstance(load(link), DirectPosterior)


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
    with pytest.raises(ValueError, match="do not fit into what the builder that was passed"):
        load(tmp_path / "posterior", build=flow_nn(BOX), build_proxy=wide)
    with pytest.raises(ValueError, match="do not fit into what the build_proxy that was passed"):
        load(tmp_path / "posterior", build=embedded, build_proxy=proxy_nn("mlp"))


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
    prior = Independent(VonMises(torch.zeros(2), torch.ones(2)), 1)
    original = train(prior, NAMED)
    save(original, tmp_path / "posterior")
    assert_same(load(tmp_path / "posterior", prior=prior), original, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"class VonMises, .*prior="):
        load(tmp_path / "posterior")


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


def with_other_bytes(path, content):
    """One bit of the last weight, or of what is stored beside it."""
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


def with_other_structure(path, content):
    def without_arguments(metadata):
        structure = json.loads(metadata["structure"])
        del structure["density_estimator_kwargs"]
        return metadata | {"structure": json.dumps(structure)}

    path.write_bytes(content)
    rewrite(path, without_arguments)


def without_structure(path, content):
    path.write_bytes(content)
    rewrite(path, lambda metadata: {k: v for k, v in metadata.items() if k != "structure"})


BAD_FILES = {
    "other weights": (with_other_bytes, ValueError, "is damaged"),
    "other structure": (with_other_structure, ValueError, "is damaged"),
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
    "without a structure": (
        without_structure,
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


def test_files_that_do_not_say_what_was_saved_are_read(saved, tmp_path):
    path = tmp_path / "posterior"
    path.write_bytes(saved)
    rewrite(path, lambda metadata: {k: v for k, v in metadata.items() if k != "sha256"})
    assert isinstance(load(path), DirectPosterior)


def make_older(path, missing, version):
    """Write a file of an older format, which lacks a tensor."""
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in file.metadata().items() if k != "sha256"}
    del tensors[missing]
    save_file(tensors, path, metadata | {"format_version": version})


def test_older_files_do_not_say_how_far_training_data_reach(saved, tmp_path):
    path = tmp_path / "posterior"
    path.write_bytes(saved)
    assert load(path).posterior_estimator.reach.isfinite().all()
    make_older(path, "reach", "3.11")
    loaded = load(path)
    assert loaded.posterior_estimator.reach.isnan().all()
    loaded.sample((2,), x=1e3 * torch.ones(1, 3), show_progress_bars=False)


def test_in_older_files_the_floor_of_the_base_has_no_slope(saved, tmp_path):
    path = tmp_path / "posterior"
    path.write_bytes(saved)
    make_older(path, "base_units", "3.12")
    base = load(path).posterior_estimator.proxy.base
    far = torch.full((1, base.units.shape[1]), 100.0)
    assert base.log_prob_soft(far).tolist() == [base.floor.item()]


def test_older_files_of_other_flows_are_read(tmp_path):
    path = tmp_path / "posterior"
    save(sbi_posterior("maf"), path, density_estimator="maf")
    rewrite(path, lambda metadata: metadata | {"format_version": "1.0"})
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
