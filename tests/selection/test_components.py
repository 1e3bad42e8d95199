"""Principal components in place of columns: which are taken, when, and what becomes of them."""

import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch import randn

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.features.principal import principal_axes
from sbi_jeffreys.features.scales import standardizer
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.information import information
from sbi_jeffreys.selection import components, seen
from sbi_jeffreys.selection.components import Components, components_of
from sbi_jeffreys.utils.quiet import QuietTracker

PRIOR = BoxUniform(torch.tensor([0.5, 0.05, 0.2]), torch.tensor([3.0, 1.0, 2.0]))


def oscillation(theta, points=100):
    """Frequency, damping and amplitude of an oscillation, seen in noise."""
    frequency, damping, amplitude = theta.T[..., None]
    time = torch.linspace(0, 8, points)
    signal = amplitude * torch.exp(-damping * time) * torch.cos(frequency * time)
    return signal + 0.3 * randn(len(theta), points)


def draws_of_one_law(theta):
    """Sixty draws, whose spread is a parameter: all of them tell of it, and no component."""
    return theta[:, :1] + theta[:, 1:2].exp() * randn(len(theta), 60)


def every_column_by_itself(theta):
    """Twenty columns that tell of twenty parameters: half of the directions are not enough."""
    return theta + 0.3 * randn(theta.shape)


@pytest.fixture
def _in_full(monkeypatch):
    """As many steps of a fit as users get."""
    monkeypatch.setattr("sbi_jeffreys.likelihood.fit._STEPS", 300)


def standardized(x):
    return standardizer(x)(x)


@pytest.mark.usefixtures("_in_full")
@pytest.mark.parametrize("num", [300, 1000])
def test_few_directions_in_noise_are_components(num):
    theta = PRIOR.sample((num,))
    found = components_of(theta, standardized(oscillation(theta)))
    # Three parameters bend a curve through few dimensions.
    assert isinstance(found, Components)
    assert 3 <= len(found.offset) <= 20


@pytest.mark.usefixtures("_in_full")
@pytest.mark.parametrize(
    ("x_of", "dim"), [(draws_of_one_law, 2), (every_column_by_itself, 20)], ids=["law", "columns"]
)
def test_what_components_do_not_tell_is_left_to_columns(x_of, dim):
    theta = 2 * torch.rand(500, dim) - 1
    assert components_of(theta, standardized(x_of(theta))) is None


def says(monkeypatch, of_columns, of_few):
    """Let a likelihood tell so many nats from columns, and from few components."""
    told = iter(9 * [of_columns, of_few])

    def information(rows, held_out):
        return next(told) + torch.linspace(-0.1, 0.1, len(held_out[0]))

    monkeypatch.setattr(components, "information", information)


def test_few_columns_and_few_rows_are_not_asked(monkeypatch):
    monkeypatch.setattr(components, "information", None)
    theta = PRIOR.sample((200,))
    x = standardized(oscillation(theta))
    assert components_of(theta, x[:, :19]) is None
    assert components_of(theta[:49], x[:49]) is None
    with pytest.raises(TypeError):
        components_of(theta, x)


def test_a_linear_posterior_that_is_less_sharp_keeps_columns(monkeypatch):
    says(monkeypatch, 0.0, 9.0)
    theta = 2 * torch.rand(500, 20) - 1
    assert components_of(theta, standardized(every_column_by_itself(theta))) is None


@pytest.mark.parametrize(
    ("num", "gain", "taken"), [(400, 0.1, False), (400, 0.3, True), (100, 0.1, False)]
)
def test_held_out_rows_must_be_surer(num, gain, taken, monkeypatch):
    says(monkeypatch, 0.0, gain)
    theta = PRIOR.sample((num,))
    found = components_of(theta, standardized(oscillation(theta)))
    assert (found is not None) == taken


@pytest.mark.parametrize("num", [100, 400])
def test_few_rows_must_be_surer_still(num, monkeypatch):
    """Here of a gain of one and a half standard errors, which the row's number is not."""
    theta = PRIOR.sample((num,))
    x = standardized(oscillation(theta))
    told = iter([torch.zeros(num // 5), 0.5 + torch.randn(num // 5)])
    gains = [next(told), next(told)]
    gains[1] = 0.5 + (gains[1] - gains[1].mean()) / gains[1].std() * 0.5 / 1.5 * (num // 5) ** 0.5
    given = iter(gains)
    monkeypatch.setattr(components, "information", lambda rows, held_out: next(given))
    monkeypatch.setattr(components, "bounded", lambda losses: losses)
    assert (components_of(theta, x) is not None) == (num == 400)


@pytest.mark.parametrize("shape", [(30,), (501,), (1, 6, 6)])
def test_x_that_never_varies_has_no_components(shape):
    theta, x = PRIOR.sample((100,)), torch.ones(100, *shape)
    flow = flow_nn(PRIOR)(theta, x)
    assert flow.log_prob(theta.unsqueeze(0), x).isfinite().all()
    with pytest.raises(ValueError, match="have 0 principal components"):
        flow_nn(PRIOR, components=3)(theta, x)


@pytest.mark.parametrize("finite", [0, 1])
def test_rows_that_are_none_have_no_components(finite):
    theta, x = PRIOR.sample((30,)), torch.full((30, 40), math.nan)
    x[:finite] = 1.0
    with pytest.raises(ValueError, match=f"but {finite} simulations of 40 columns have 0"):
        components_of(theta, x, 3)


def test_the_number_may_be_named():
    theta = PRIOR.sample((50,))
    x = standardized(oscillation(theta))
    assert components_of(theta, x, 0) is None
    found = components_of(theta, x, 7)
    assert found.directions.shape == (100, 7)
    seen = found(x)
    # In units of the first one's standard deviation, uncorrelated, in descending order.
    covariance = seen.T.cov()
    assert covariance[0, 0].item() == pytest.approx(1.0, abs=1e-4)
    assert (covariance.diagonal().diff() < 0).all()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4
    with pytest.raises(
        ValueError, match="components=50, but 50 simulations of 100 columns have 49"
    ):
        components_of(theta, x, 50)


def test_rows_with_nan_do_not_count():
    theta = PRIOR.sample((60,))
    x = standardized(oscillation(theta))
    expected = components_of(theta, x, 5).directions
    nan = torch.full((1, 100), math.nan)
    theta = torch.cat((theta[:1], torch.full((1, 3), math.nan), theta))
    found = components_of(theta, torch.cat((nan, x[:1], x)), 5).directions
    # In another order; an axis has no sign.
    torch.testing.assert_close((found * expected).sum(dim=0).abs(), expected.square().sum(dim=0))


@pytest.mark.parametrize("shape", [(200, 30), (30, 200), (1600, 501)])
def test_axes_are_those_of_numpy(shape):
    """Of more columns than rows, too, and of many from some of the rows."""
    x = randn(shape) * torch.linspace(0.5, 2.0, shape[1])
    mean, axes, std = principal_axes(x)
    rows = x[::2].double() if shape[1] > 500 else x.double()
    expected = torch.linalg.svdvals(rows - rows.mean(dim=0)) / (len(rows) - 1) ** 0.5
    assert torch.allclose(std, expected[: len(std)], rtol=1e-6)
    assert torch.allclose(mean, rows.mean(dim=0))
    assert torch.allclose(axes.T @ axes, torch.eye(len(std)).double(), atol=1e-8)
    # Along an axis data vary as much as it says.
    assert torch.allclose((rows @ axes).std(dim=0), std, rtol=1e-6)
    assert len(std) == min(shape[1], len(rows) - 1, 500)


def test_axes_that_are_rounding_are_none():
    x = randn(100, 2) @ randn(2, 30)
    assert len(principal_axes(x)[2]) == 2


def test_the_order_of_rows_does_not_decide(monkeypatch):
    """More rows than are looked at, ordered by a parameter."""
    monkeypatch.setattr(components, "ROWS", 400)
    theta = PRIOR.sample((1200,))
    theta = theta[theta[:, 2].argsort()]
    found = components_of(theta, standardized(oscillation(theta)), 3)
    few = components_of(theta[:400], standardized(oscillation(theta[:400])), 3)
    # Nearly no amplitude, and it is not what they vary by.
    assert found.directions.norm() < few.directions.norm()


@pytest.mark.usefixtures("_in_full")
def test_information_is_that_of_a_gaussian_channel():
    """½ log(1 + signal / noise) nats are shared; 200 held-out rows scatter by 0.05."""
    theta = randn(1000, 1)
    x = theta + 0.5 * randn(1000, 3)
    rows, held_out = (theta[:800], x[:800]), (theta[800:], x[800:])
    found = information(rows, held_out).mean().item()
    assert found == pytest.approx(0.5 * math.log(1 + 3 / 0.25), abs=0.2)
    nothing = information((rows[0], randn(800, 3)), (held_out[0], randn(200, 3)))
    assert nothing.mean().item() == pytest.approx(0.0, abs=0.05)


def trained(x, theta, **kwargs):
    trainer = JeffreysNPE(PRIOR, seed=0, show_progress_bars=False, tracker=QuietTracker(), **kwargs)
    return trainer, trainer.append_simulations(theta, x).train(max_num_epochs=2)


@pytest.mark.parametrize("objective", ["dual", "ml"])
@pytest.mark.parametrize("shape", [(100,), (2, 50), (1, 10, 10)])
def test_series_and_images_are_seen_as_components_and_saved(
    objective, shape, tmp_path, monkeypatch
):
    says(monkeypatch, 0.0, 1.0)
    theta = PRIOR.sample((200,))
    x = oscillation(theta).unflatten(1, shape)
    trainer, estimator = trained(x, theta, objective=objective)
    seen = estimator.embed(x)
    assert seen.shape[1] == len(estimator.flow.embedding_net[2 if x.dim() > 2 else 1].offset) <= 20
    posterior = trainer.build_posterior()
    save(posterior, tmp_path / "posterior")
    loaded = load(tmp_path / "posterior").posterior_estimator
    at = theta[:8], x[:8]
    assert torch.equal(loaded.log_prob(*at), posterior.posterior_estimator.log_prob(*at))


def test_counts_in_components_come_in_no_steps(monkeypatch):
    says(monkeypatch, 0.0, 1.0)
    monkeypatch.setattr(seen, "statistics_of", lambda *args: None)
    theta = PRIOR.sample((200,))
    _, estimator = trained(torch.poisson(oscillation(theta).exp()), theta)
    assert isinstance(estimator.flow.embedding_net[1], Components)
    assert not estimator.proxy.network.spreads_steps


def test_more_columns_than_start_in_closed_form_are_components(monkeypatch):
    theta = PRIOR.sample((100,))
    x = oscillation(theta, 600)
    says(monkeypatch, 0.0, -0.1)
    assert flow_nn(PRIOR)(theta, x).embedding_net(x).shape[1] <= 40
    # As many as a hundred rows have, where few do not tell as much.
    says(monkeypatch, 1.0, 0.0)
    assert flow_nn(PRIOR)(theta, x).embedding_net(x).shape == (100, 99)


@pytest.mark.parametrize("shape", [(100,), (1, 10, 10), (700,)])
def test_builders_of_flows_that_see_components_are_taken_again(shape, tmp_path, monkeypatch):
    says(monkeypatch, 0.0, 1.0)
    theta = PRIOR.sample((200,))
    x = oscillation(theta, math.prod(shape)).unflatten(1, shape)
    build = flow_nn(PRIOR, hidden_features=16)
    trainer, estimator = trained(x, theta, density_estimator=build)
    save(trainer.build_posterior(), tmp_path / "posterior")
    # It must not ask again, of other data.
    monkeypatch.setattr(components, "information", None)
    loaded = load(tmp_path / "posterior", build=build).posterior_estimator
    at = theta[:8], x[:8]
    assert torch.equal(loaded.log_prob(*at), estimator.log_prob(*at))


def test_a_seed_gives_the_same_weights_and_gradients_are_not_needed():
    theta = PRIOR.sample((200,))
    x = oscillation(theta)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with torch.set_grad_enabled(seed == 1):
            flow_nn(PRIOR)(theta, x)
        torch.set_rng_state(state)
        weights.append(trained(x, theta)[1].state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_components_beside_an_embedding_net_are_refused():
    with pytest.raises(ValueError, match="leave one of the two out"):
        flow_nn(PRIOR, embedding_net=torch.nn.Linear(100, 3), components=4)
    with pytest.raises(ValueError, match="components must be an integer of at least 0, got -1"):
        flow_nn(PRIOR, components=-1)


def test_gross_outliers_are_not_in_every_component():
    theta = PRIOR.sample((300,))
    x = standardized(oscillation(theta))
    found = components_of(theta, x, 10)
    far = x.clone()
    far[:, 3] = 1e6
    # One of a hundred columns can do no more than ten standard deviations in any direction.
    assert (found(far) - found(x)).norm(dim=1).max() < 20 * found.directions[3].norm()
