"""What sbi promises of ``NPE`` holds for ``JeffreysNPE``: signatures, posteriors, diagnostics."""

import inspect

import pytest
import torch
from sbi.analysis import ConditionedMDN
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.diagnostics.lc2st import LC2ST
from sbi.inference import NPE, DirectPosterior, EnsemblePosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from scipy import stats
from torch import Tensor
from torch.distributions import Uniform

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.utils.quiet import QuietTracker

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
X_O = torch.tensor([0.4, -0.2])
SCALE = 0.2
# The defaults that differ.
OTHER_DEFAULTS = {
    ("train", "learning_rate"): 4e-3,
    ("__init__", "density_estimator"): "coupling_nsf",
}
METHODS = ("__init__", "append_simulations", "train", "build_posterior")


def simulate(theta: Tensor) -> Tensor:
    return theta + SCALE * torch.randn_like(theta)


def make(seed: int = 0, density_estimator="coupling_nsf") -> JeffreysNPE:
    trainer = JeffreysNPE(
        PRIOR, density_estimator, seed=seed, show_progress_bars=False, tracker=QuietTracker()
    )
    theta = PRIOR.sample((600,))
    return trainer.append_simulations(theta, simulate(theta))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> JeffreysNPE:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trainer = make()
        trainer.train(max_num_epochs=15, learning_rate=2e-3, training_batch_size=60)
    return trainer


def truth(num: int) -> Tensor:
    """Return exact posterior samples: a Gaussian cut at the prior's bounds."""
    samples = X_O + SCALE * torch.randn(4 * num, 2)
    return samples[(samples.abs() < 1).all(dim=1)][:num]


# Signatures


@pytest.mark.parametrize("method", METHODS)
def test_signature(method):
    theirs = inspect.signature(getattr(NPE, method)).parameters
    ours = inspect.signature(getattr(JeffreysNPE, method)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind, name
        default = OTHER_DEFAULTS.get((method, name), parameter.default)
        assert ours[name].default == default, name
    for name in list(ours)[len(theirs) :]:
        assert ours[name].kind == inspect.Parameter.KEYWORD_ONLY, name
        assert ours[name].default is not inspect.Parameter.empty, name


@pytest.mark.parametrize(("method", "name"), OTHER_DEFAULTS)
def test_listed_differences_are_differences(method, name):
    theirs = inspect.signature(getattr(NPE, method)).parameters
    assert theirs[name].default != OTHER_DEFAULTS[method, name]


def test_types(trained):
    assert isinstance(trained, NPE)
    estimator = trained._neural_net
    assert isinstance(estimator, ConditionalDensityEstimator)
    assert estimator.input_shape == estimator.condition_shape == torch.Size([2])
    assert not estimator.training
    assert all(p.grad is None for p in estimator.parameters())


def test_calls_can_be_chained():
    estimator = make(density_estimator="mdn").train(max_num_epochs=1)
    assert estimator.log_prob(torch.zeros(1, 1, 2), torch.zeros(1, 2)).shape == (1, 1)


def test_summary_has_what_sbi_has(trained):
    theirs = NPE(PRIOR, tracker=QuietTracker()).summary
    assert set(theirs) <= set(trained.summary)


# Posteriors

KINDS = {
    "direct": None,
    "rejection": RejectionPosteriorParameters(num_samples_to_find_max=500),
    "mcmc": MCMCPosteriorParameters(num_chains=20, warmup_steps=10, thin=1),
    "importance": ImportanceSamplingPosteriorParameters(oversampling_factor=8),
    "vi": VIPosteriorParameters(q="gaussian"),
}


def build(trainer: JeffreysNPE, kind: str) -> NeuralPosterior:
    return trainer.build_posterior(sample_with=kind, posterior_parameters=KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_posterior(kind, trained):
    posterior = build(trained, kind)
    posterior.set_default_x(X_O)
    if kind == "vi":
        posterior.train(
            n_particles=64,
            learning_rate=0.02,
            max_num_iters=150,
            show_progress_bar=False,
            quality_control=False,
        )
    samples = posterior.sample((200,), show_progress_bars=False)
    assert samples.shape == (200, 2)
    assert (samples.abs() <= 1).all()
    # Means of 200 draws of scale 0.2 have an error of 0.02; the rest is a short training.
    assert (samples.mean(dim=0) - X_O).abs().max() < 0.15
    assert posterior.potential(samples[:3]).isfinite().all()


def test_parts_of_kinds_agree(trained):
    """All kinds look at the same potential: the pool's log density inside of the prior."""
    theta = PRIOR.sample((6,))
    values = [build(trained, kind).potential(theta, x=X_O) for kind in KINDS]
    expected = trained._neural_net.log_prob(theta[:, None], X_O[None])[:, 0]
    for value in values:
        # Float32 of one network, batched differently.
        torch.testing.assert_close(value.detach(), expected.detach(), atol=1e-4, rtol=1e-4)


def test_log_prob_is_corrected_for_leakage():
    # A mixture of Gaussians leaks, unlike the default flow, or a pool with a proxy that does not.
    trainer = make(density_estimator="mdn")
    flow = trainer.train(max_num_epochs=2).flow
    posterior = trainer.build_posterior(flow).set_default_x(torch.tensor([0.9, 0.9]))
    theta = PRIOR.sample((5,))
    acceptance = posterior.leakage_correction(posterior.default_x, num_rejection_samples=20_000)
    assert acceptance < 0.9
    raw = posterior.log_prob(theta, norm_posterior=False)
    corrected = posterior.log_prob(
        theta, leakage_correction_params={"num_rejection_samples": 20_000}
    )
    # Two estimates of a probability above 0.1 from 20,000 draws: a relative error below 0.02
    # each (one standard deviation).
    torch.testing.assert_close((corrected - raw), -acceptance.log().expand(5), atol=0.1, rtol=0)
    outside = torch.full((1, 2), 1.5)
    assert posterior.log_prob(outside).item() == -torch.inf


def test_default_flow_stays_within_the_prior(trained):
    posterior = trained.build_posterior().set_default_x(torch.tensor([1.2, 1.2]))
    assert posterior.leakage_correction(posterior.default_x).item() > 0.99


def test_batched(trained):
    posterior = trained.build_posterior()
    xs = torch.stack((X_O, -X_O, torch.zeros(2)))
    samples = posterior.sample_batched((300,), x=xs, show_progress_bars=False)
    assert samples.shape == (300, 3, 2)
    # The samples belong to their own x; see the tolerance above.
    assert (samples.mean(dim=0) - xs).abs().max() < 0.15
    assert posterior.log_prob_batched(samples[:4], x=xs).shape == (4, 3)


def test_map(trained):
    posterior = trained.build_posterior().set_default_x(X_O)
    found = posterior.map(
        num_init_samples=100, num_to_optimize=10, num_iter=60, show_progress_bars=False
    )
    random = posterior.potential(truth(200)).max()
    # At least as good as the best of 200 draws, less what 60 steps leave.
    assert posterior.potential(found).item() > random.item() - 0.1


def test_ensemble(trained):
    other = make(seed=1)
    other.train(max_num_epochs=5, learning_rate=2e-3, training_batch_size=60)
    members = [trained.build_posterior(), other.build_posterior()]
    ensemble = EnsemblePosterior(members)
    ensemble.set_default_x(X_O)
    samples = ensemble.sample((50,), show_progress_bars=False)
    assert samples.shape == (50, 2)
    theta = truth(4)
    each = torch.stack([m.log_prob(theta, x=X_O, norm_posterior=False) for m in members])
    # Both leak less than a percent, and the ensemble normalises: an error below 0.05.
    mean = each.logsumexp(dim=0) - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(ensemble.log_prob(theta).detach(), mean.detach(), atol=0.05, rtol=0)


def test_given_estimator_and_prior(trained):
    estimator = trained._neural_net
    posterior = trained.build_posterior(estimator, prior=PRIOR)
    assert isinstance(posterior, DirectPosterior)
    assert posterior.posterior_estimator is not estimator
    narrow = BoxUniform(torch.zeros(2), torch.ones(2))
    samples = DirectPosterior(estimator, narrow).sample(
        (50,), x=torch.full((2,), 0.5), show_progress_bars=False
    )
    assert (samples >= 0).all()


# Diagnostics


def uniformity(ranks: Tensor) -> list[float]:
    """Return the p-value of a Kolmogorov-Smirnov test for the ranks of each parameter."""
    return [float(stats.kstest(column / 50, "uniform").pvalue) for column in ranks.T.numpy()]


@pytest.mark.filterwarnings("ignore:Number of posterior samples for ranking should be")
@pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size")
def test_sbc_and_tarp(trained):
    posterior = trained.build_posterior()
    theta = PRIOR.sample((100,))
    x = simulate(theta)
    ranks, dap = run_sbc(theta, x, posterior, num_posterior_samples=50, show_progress_bar=False)
    assert ranks.shape == (100, 2)
    assert len(dap) == 100
    # Two tests at level 0.001: a calibrated posterior passes, one in the wrong place does not.
    assert min(uniformity(ranks)) > 1e-3
    moved, _ = run_sbc(
        (theta + 1).clamp(max=1), x, posterior, num_posterior_samples=50, show_progress_bar=False
    )
    assert max(uniformity(moved)) < 1e-3
    coverage, levels = run_tarp(
        theta, x, posterior, num_posterior_samples=50, show_progress_bar=False
    )
    area, p_value = check_tarp(coverage, levels)
    # The area sums the coverage above one half less its expectation: 25 levels of at most 1.
    assert abs(area) < 3
    assert p_value > 1e-3


@pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size")
def test_lc2st(trained):
    posterior = trained.build_posterior()
    theta = PRIOR.sample((200,))
    x = simulate(theta)
    samples = posterior.sample_batched((1,), x=x, show_progress_bars=False)[0]
    lc2st = LC2ST(theta, x, samples, classifier="mlp", num_trials_null=2, seed=1)
    lc2st.train_on_observed_data(verbosity=0)
    lc2st.train_under_null_hypothesis(verbosity=0)
    at = posterior.sample((200,), x=X_O, show_progress_bars=False)
    statistic = lc2st.get_statistic_on_observed_data(theta_o=at, x_o=X_O[None])
    # The mean squared distance of a classifier's probability from one half: at most a quarter.
    assert 0 <= statistic < 0.1


@pytest.mark.parametrize("options", [None, {"batch_size": 50, "drop_last": True}])
def test_dataloaders_yield_batches(options):
    """A loop of a user's own over what training sees: (theta, x, masks)."""
    trainer = make()
    loaders = trainer.get_dataloaders(training_batch_size=50, dataloader_kwargs=options)
    theta = torch.cat([batch[0] for loader in loaders for batch in loader])
    assert [len(loader) for loader in loaders] == [10, 1]
    known = trainer.get_simulations()[0]
    if options is None:
        assert sorted(theta.tolist()) == sorted(known.tolist())
    for loader in loaders:
        assert all(len(theta) == len(x) >= 50 for theta, x, _ in loader)


def test_a_conditioned_mixture_of_gaussians_is_of_the_flow():
    estimator = make(density_estimator="mdn").train(max_num_epochs=2)
    x, condition = X_O[None], torch.zeros(1, 2)
    drawn = ConditionedMDN(estimator.flow, x, condition, [0]).sample((5,))
    assert drawn.shape == (5, 1)
    with pytest.raises(TypeError, match=r"no mixture of Gaussians: pass .*estimator\.flow"):
        ConditionedMDN(estimator, x, condition, [0])


def test_only_a_flow_by_itself_is_a_transform():
    estimator = make(density_estimator="maf").train(max_num_epochs=2)
    at = PRIOR.sample((5,)), X_O.expand(5, 2)
    estimator.weight = 0.0
    assert torch.equal(estimator.inverse_transform(*at), estimator.flow.inverse_transform(*at))
    estimator.weight = 0.5
    with pytest.raises(TypeError, match=r"LC2ST_NF.*estimator\.flow"):
        estimator.inverse_transform(*at)


def test_a_batch_of_numbers_is_a_prior():
    prior = Uniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((100,))
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta, simulate(theta), proposal=prior).train(max_num_epochs=2)
    posterior = trainer.build_posterior()
    drawn = posterior.sample((20,), x=X_O, show_progress_bars=False)
    assert drawn.shape == (20, 2)
    assert drawn.abs().max() <= 1
    assert posterior.log_prob(drawn, x=X_O).shape == (20,)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_an_x_beyond_all_numbers_is_refused(weight):
    """Draws would be no numbers, and rejected for ever."""
    trainer = make()
    trainer.train(max_num_epochs=1).weight = weight
    posterior = trainer.build_posterior()
    for x in (3e38, -3e38):
        with pytest.raises(ValueError, match=r"no draws at an x whose largest entry is 3e\+38"):
            posterior.sample((5,), x=torch.tensor([0.1, x]), show_progress_bars=False)
    for x in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"x with NaN or inf in it \(number 1 of 2\)"):
            posterior.sample_batched((5,), x=torch.tensor([[0.1, 0.2], [x, 0.1]]))
    with pytest.warns(UserWarning, match="1 of 1 x lie far from all training data"):
        assert posterior.sample((5,), x=torch.tensor([0.1, 1e30])).isfinite().all()
