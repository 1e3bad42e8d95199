"""Statistics that a likelihood of levels has learnt: what they are, when, and what flows see."""

import copy
import pickle

import pytest
import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.features.scales import standardizer
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.discrete import DISCRETE
from sbi_jeffreys.selection import statistics
from sbi_jeffreys.selection.components import Components
from sbi_jeffreys.selection.seen import Selection
from sbi_jeffreys.selection.statistics import NO_STATISTICS, Statistics, statistics_of
from sbi_jeffreys.utils.quiet import QuietTracker

PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
DESIGN = torch.randn(2, 40, generator=torch.Generator().manual_seed(5))


def bits(theta: Tensor) -> Tensor:
    """Forty bits of a generalised linear model, whose sums along DESIGN are sufficient."""
    return torch.bernoulli(torch.sigmoid(theta @ DESIGN - 0.5))


def standardized(x: Tensor) -> Tensor:
    return standardizer(x)(x)


@pytest.fixture
def _in_full(monkeypatch):
    """As many steps of a fit as users get."""
    monkeypatch.setattr("sbi_jeffreys.likelihood.fit._STEPS", 300)


def says(monkeypatch, of_others: float, of_levels: float):
    """Let a likelihood of levels tell so many nats, and the other so many."""
    for name, value in (("information", of_others), ("information_of", of_levels)):

        def told(*args, value=value):
            return value + torch.linspace(-0.1, 0.1, len(args[-1][0]))

        monkeypatch.setattr(statistics, name, told)


def trained(x: Tensor, theta: Tensor, **kwargs):
    settings = {"prior": PRIOR, "seed": 0, "show_progress_bars": False, "tracker": QuietTracker()}
    trainer = JeffreysNPE(**(settings | kwargs)).append_simulations(theta, x)
    return trainer, trainer.train(max_num_epochs=3)


@pytest.mark.usefixtures("_in_full")
def test_sums_are_sufficient_statistics():
    theta = PRIOR.sample((500,))
    x = bits(theta)
    found = statistics_of(theta, standardized(x), None)
    assert isinstance(found, Statistics)
    few = found(standardized(x))[:, :2]
    exact = x @ DESIGN.T
    # Two of the statistics, up to a linear map, are the exact ones; the rest is little of nothing.
    few, exact = (each - each.mean(dim=0) for each in (few, exact))
    residuals = exact - few @ torch.linalg.lstsq(few, exact).solution
    # Forty coefficients of 400 simulations are known to a tenth or so each.
    assert (residuals.var(dim=0) < 0.05 * exact.var(dim=0)).all()
    std = found(standardized(x)).std(dim=0)
    assert std[0] == pytest.approx(1.0, abs=0.05)
    assert (std[2:] < 0.3).all()


@pytest.mark.usefixtures("_in_full")
def test_bits_that_move_together_are_left_to_others():
    """Noise that all columns share: columns on their own would be sure of too much."""
    theta = PRIOR.sample((500,))
    x = (theta[:, :1] + torch.randn(500, 1) + 0.3 * torch.randn(500, 30) > 0).float()
    assert statistics_of(theta, standardized(x), None) is None


@pytest.mark.usefixtures("_in_full")
@pytest.mark.parametrize("num", [60, 300])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_bits_that_say_little(num, slope):
    """Nothing fails where natural parameters hardly move; whether sums are taken is left open."""
    theta = PRIOR.sample((num,))
    x = torch.bernoulli(torch.sigmoid(slope * theta[:, :1] - 0.4).expand(-1, 30))
    found = statistics_of(theta, standardized(x), None)
    assert found is None or found(standardized(x)).isfinite().all()


@pytest.mark.usefixtures("_in_full")
def test_sums_tell_of_zeros_in_excess():
    """Thirty counts with zeros in excess: the mean count tells of rate and zeros together."""
    theta = 2 * torch.rand(600, 2) - 1
    rate = (1 + theta[:, :1]).exp().expand(-1, 30)
    x = torch.poisson(rate) * (torch.rand(600, 30) < torch.sigmoid(2 * theta[:, 1:]))
    c = standardized(x)
    found = statistics_of(theta, c, None)(c)
    zeros = (x == 0).float().mean(dim=1, keepdim=True)
    exact = torch.cat((x.mean(dim=1, keepdim=True), zeros), dim=1)
    exact, found = exact - exact.mean(dim=0), found - found.mean(dim=0)
    residuals = exact - found @ torch.linalg.lstsq(found, exact).solution
    assert (residuals.var(dim=0) < 0.1 * exact.var(dim=0)).all()


@pytest.mark.parametrize(("gain", "taken"), [(-0.1, False), (0.1, True), (float("nan"), False)])
def test_held_out_rows_decide(gain, taken, monkeypatch):
    says(monkeypatch, 1.0, 1.0 + gain)
    theta = PRIOR.sample((400,))
    assert (statistics_of(theta, standardized(bits(theta)), None) is not None) is taken


def test_it_is_compared_with_what_would_be_seen_otherwise(monkeypatch):
    seen = []
    monkeypatch.setattr(
        statistics, "information", lambda rows, held: seen.append(rows[1]) or held[1][:, 0]
    )
    theta = PRIOR.sample((400,))
    x = standardized(bits(theta))
    statistics_of(theta, x, None)
    statistics_of(theta, x, Components(torch.eye(40)[:, :3], torch.zeros(3)))
    assert [rows.shape[1] for rows in seen] == [40, 3]


def test_other_data_are_not_asked(monkeypatch):
    monkeypatch.setattr(statistics, "fitted", None)
    theta = PRIOR.sample((400,))
    x = standardized(bits(theta))
    assert statistics_of(theta, x[:, :19], None) is None
    assert statistics_of(theta[:49], x[:49], None) is None
    assert statistics_of(theta, x + torch.randn_like(x), None) is None
    assert statistics_of(theta, x.repeat(1, 13), None) is None
    with pytest.raises(TypeError):
        statistics_of(theta, x, None)


@pytest.mark.parametrize("shape", [(40,), (2, 20)])
@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_the_flow_sees_statistics_and_the_proxy_columns(shape, objective, tmp_path, monkeypatch):
    says(monkeypatch, 0.0, 1.0)
    # What is chosen for the joint training.
    monkeypatch.setattr("sbi_jeffreys.likelihood.forms.surest", lambda losses: len(losses) - 1)
    theta = PRIOR.sample((200,))
    x = bits(theta).unflatten(1, shape)
    trainer, estimator = trained(x, theta, objective=objective)
    assert estimator.num_statistics == Selection.of(estimator.flow).statistics.number > 1
    assert estimator.num_components == 0
    assert estimator.embed(x).shape == (200, 40)
    # sbi's own way to the density, and ours.
    at = theta[:8], x[:8]
    given = estimator.log_prob_embedded(theta[None, :8], estimator.embed(x[:8]))[0]
    assert torch.allclose(estimator.flow.log_prob(*at)[0], given, atol=1e-5)
    drawn, log_prob = estimator.sample_with_log_prob(5, estimator.embed(x[:8]))
    expected = estimator.log_prob_embedded(drawn, estimator.embed(x[:8]))
    assert torch.allclose(log_prob, expected, atol=1e-3)
    if objective == "dual":
        assert estimator.likelihood.common == DISCRETE
    posterior = trainer.build_posterior()
    save(posterior, tmp_path / "posterior")
    # It must not ask again, of other data.
    monkeypatch.setattr(statistics, "information", None)
    loaded = load(tmp_path / "posterior").posterior_estimator
    for twin in (loaded, copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert twin.num_statistics == estimator.num_statistics
        assert torch.equal(twin.log_prob(*at), estimator.log_prob(*at))


def test_columns_and_components_that_were_asked_for_are_seen():
    theta = PRIOR.sample((200,))
    x = bits(theta)
    for components in (0, 4):
        flow = flow_nn(PRIOR, components=components)(theta, x)
        assert Selection.of(flow).statistics == NO_STATISTICS
        assert flow.embedding_net(x).shape[1] == (components or 40)


@pytest.mark.slow
def test_the_posterior_of_many_bits_is_nearly_exact():
    """Against the posterior on a grid; with components of the bits it is 0.1 nats behind."""
    theta = PRIOR.sample((2500,))
    x = bits(theta)
    trainer = JeffreysNPE(PRIOR, seed=0, show_progress_bars=False, tracker=QuietTracker())
    estimator = trainer.append_simulations(theta[:500], x[:500]).train()
    assert estimator.num_statistics
    with torch.no_grad():
        found = -estimator.log_prob(theta[None, 500:], x[500:])[0].mean()
    line = torch.linspace(-2, 2, 101)
    grid = torch.cartesian_prod(line, line)

    def log_likelihood(at: Tensor, rows: Tensor) -> Tensor:
        odds = at @ DESIGN - 0.5
        return odds @ rows.T - torch.nn.functional.softplus(odds).sum(dim=1, keepdim=True)

    own = log_likelihood(theta[500:], x[500:]).diagonal()
    evidence = torch.cat(
        [log_likelihood(grid, part).logsumexp(dim=0) for part in x[500:].split(200)]
    )
    cell = (line[1] - line[0]) ** 2
    exact = -(own - evidence - cell.log()).mean()
    # Paired over 2,000 rows it is known to a hundredth; trainings are 0.02 behind or less.
    assert found < exact + 0.05
