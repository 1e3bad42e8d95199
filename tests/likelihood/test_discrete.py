"""The likelihood of data in levels: exact where its form is right, and comparable with others."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Binomial, Poisson

from sbi_jeffreys.features.columns import Features
from sbi_jeffreys.likelihood.discrete import DISCRETE, DiscreteLikelihood
from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.likelihood.fit import LikelihoodFit, likelihood_losses
from sbi_jeffreys.likelihood.levels import has_few_levels
from sbi_jeffreys.likelihood.stacking import stacked
from sbi_jeffreys.likelihood.start import steps_of
from sbi_jeffreys.proxy import proxy_nn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def moved(network: DiscreteLikelihood) -> DiscreteLikelihood:
    """Return a network whose weights are none of the start's."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def three_kinds(num: int) -> tuple[Tensor, Tensor]:
    """Return parameters, and a bit, a count and a column that never varies."""
    theta = 2 * torch.rand(num, 2) - 1
    bit = torch.bernoulli(torch.sigmoid(2 * theta[:, :1]))
    count = torch.poisson((0.5 + theta[:, 1:]).exp())
    return theta, torch.cat((bit, count, torch.full((num, 1), 7.0)), dim=1)


def probabilities(network: DiscreteLikelihood, theta: Tensor, x: Tensor) -> Tensor:
    """Return the probability of data (B, c) for each of theta (S, d), from log densities."""
    levels = (x.unsqueeze(-1) == network.values).to(torch.uint8).argmax(dim=-1)
    widths = network.log_width.gather(1, levels.T).sum(dim=0)
    log_density = network.log_mixture(theta.unsqueeze(1), x) - network.constant
    return (log_density + widths).exp()


def test_probabilities_of_all_levels_sum_to_one():
    theta, x = three_kinds(200)
    network = moved(DiscreteLikelihood(theta, x))
    every = torch.tensor([*itertools.product((0.0, 1.0), x[:, 1].unique().tolist(), (7.0,))])
    found = probabilities(network, theta[:20], every)
    assert torch.allclose(found.sum(dim=1), torch.ones(20), atol=1e-4)


def test_pairs_and_all_agree():
    theta, x = three_kinds(60)
    network = moved(DiscreteLikelihood(theta, x))
    crossed = network(theta.unsqueeze(1), x)
    assert crossed.shape == (60, 60)
    assert torch.allclose(network(theta.unsqueeze(0), x)[0], crossed.diagonal(), atol=1e-4)
    rows = torch.arange(40) % 7
    pairs, every, shift = network.at_pairs_and_all(theta[:40], theta[40:], x[:7], rows, 5)
    assert torch.allclose(pairs + shift[rows], crossed[torch.arange(40), rows], atol=1e-4)
    assert torch.allclose(every + shift[:5], crossed[40:, :5], atol=1e-4)


def test_draws_have_the_probabilities():
    theta, x = three_kinds(300)
    network = moved(DiscreteLikelihood(theta, x))
    drawn = network.simulate(theta[:1].expand(20_000, -1))
    for bit, count in itertools.product((0.0, 1.0), (0.0, 1.0, 3.0)):
        at = torch.tensor([[bit, count, 7.0]])
        share = (drawn == at).all(dim=1).float().mean()
        # Four standard errors of a share of 20,000 draws, at most 0.014.
        assert share.item() == pytest.approx(probabilities(network, theta[:1], at).item(), abs=0.02)


@pytest.mark.full_fit
def test_a_fit_finds_the_likelihood_of_textbooks():
    """Bernoulli, Poisson, and Poisson with zeros in excess, against their own log probabilities."""
    theta = 2 * torch.rand(3000, 2) - 1
    odds, rates = 3 * theta[:, 0] - 1, (0.5 + theta[:, 1]).exp()
    is_zero = torch.rand(3000) < 0.4
    x = torch.stack(
        (
            torch.bernoulli(odds.sigmoid()),
            torch.poisson(rates),
            torch.poisson(2 * rates) * ~is_zero,
        ),
        dim=1,
    )
    of_many = 0.6 * Poisson(2 * rates).log_prob(x[:, 2]).exp() + 0.4 * (x[:, 2] == 0)
    exact = odds * x[:, 0] - torch.nn.functional.softplus(odds)
    exact = exact + Poisson(rates).log_prob(x[:, 1]) + of_many.log()
    rows, held_out = (theta[:1000], x[:1000]), (theta[1000:2000], x[1000:2000])
    network = DiscreteLikelihood(*rows)
    fit = LikelihoodFit(network, rows, held_out)
    fit.run()
    fit.restore_best()
    with torch.no_grad():
        found = torch.stack(
            [probabilities(network, t[None], y[None])[0, 0] for t, y in zip(theta, x, strict=True)]
        ).log()
    lost = (exact - found)[2000:]
    # A thousand rows that were neither fitted nor looked at; some 15 numbers, fitted to a thousand,
    # cost half of 15 / 1000. At the start it is half a nat.
    assert 0 <= lost.mean() < 0.05


@pytest.mark.full_fit
@pytest.mark.parametrize("bent", [False, True])
def test_losses_compare_with_those_of_gaussians(bent):
    """A binomial of many trials is nearly Gaussian: both say the same of it, constants included."""
    theta = 2 * torch.rand(2000, 1) - 1
    x = Binomial(60, logits=0.3 * theta.expand(-1, 2)).sample()
    features = Features(x, torch.tensor([bent, bent]), torch.tensor([20.0, 20.0]))
    c = features(x)
    rows, held_out, test = ((theta[some], c[some]) for some in torch.arange(2000).split(800))
    found = []
    for build in (LikelihoodEnergy, DiscreteLikelihood):
        network = build(*rows)
        network.follow(features, x[:800])
        fit = LikelihoodFit(network, rows, held_out)
        fit.run()
        with torch.no_grad():
            found.append(likelihood_losses(fit.restore_best(), *test).mean().item())
    # 400 rows, whose losses differ by 0.02 from one to the other as they do from fit to fit.
    assert found[0] == pytest.approx(found[1], abs=0.06)


@pytest.mark.full_fit
def test_a_stack_hears_levels_and_densities():
    theta, x = three_kinds(400)
    # Of what never varies a Gaussian can be as sure as it likes.
    x = x[:, :2]
    gaussians, levels = LikelihoodEnergy(theta, x, common=1), DiscreteLikelihood(theta, x)
    for network in (gaussians, levels):
        fit = LikelihoodFit(network, (theta[:300], x[:300]), (theta[300:], x[300:]))
        fit.run()
        fit.restore_best()
    found = stacked(gaussians, [levels], (theta, x), torch.ones(400))
    # Of a bit and small counts, which are no Gaussians.
    assert found.log_shares.exp()[1] > 0.8
    assert stacked(levels, [gaussians], (theta, x), torch.ones(400)) is None


def test_levels_that_rounding_tells_apart_are_one():
    theta, x = three_kinds(100)
    noisy = x + torch.tensor([1e-6, 1e-6, 0.0]) * torch.randn_like(x)
    assert DiscreteLikelihood(theta, noisy).values.shape[1] == x[:, 1].unique().numel()


def test_data_beyond_all_levels_count_as_the_nearest():
    theta, x = three_kinds(200)
    network = moved(DiscreteLikelihood(theta, x))
    beyond = torch.tensor([[1.0, 1e6, 7.0], [-1e6, 1.0, 7.0], [1.0, 0.2, 7.0]])
    inside = torch.tensor([[1.0, x[:, 1].max().item(), 7.0], [0.0, 1.0, 7.0]])
    found = network.log_mixture(theta.unsqueeze(1), beyond)
    assert found.isfinite().all()
    assert torch.allclose(found[:, :2], network.log_mixture(theta.unsqueeze(1), inside), atol=1e-3)


def test_gradients_reach_all_that_is_learnt():
    theta, x = three_kinds(60)
    network = moved(DiscreteLikelihood(theta, x))
    pairs, every, shift = network.at_pairs_and_all(theta, theta[:5], x, torch.arange(60), 60)
    (pairs.sum() + every.square().sum() + shift.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("column", "few"),
    [
        (lambda t: torch.bernoulli(t.sigmoid()), True),
        # Large counts are each there once.
        (lambda t: torch.poisson(t.exp()), True),
        (lambda t: torch.poisson(100 + t), False),
        (lambda t: t, False),
        # Censored at zero.
        (lambda t: t.clamp_min(0.0), False),
        (lambda t: torch.zeros_like(t), False),
    ],
    ids=["bits", "small counts", "large counts", "continuous", "censored", "constant"],
)
def test_what_has_few_levels(column, few):
    x = column(1.5 * torch.randn(500, 1))
    assert has_few_levels(x, steps_of(x)) is few
    # Three rows for each level at least.
    assert not has_few_levels(x[:5], steps_of(x))
    # All columns must.
    mixed = torch.cat((x, torch.randn(500, 1)), dim=1)
    assert not has_few_levels(mixed, steps_of(mixed))


def test_many_columns_have_few_levels_in_all():
    x = torch.poisson(torch.full((500, 1), 3.0)).expand(-1, 400)
    assert has_few_levels(x, torch.ones(400))
    assert not has_few_levels(torch.cat((x, x + 100), dim=1), torch.ones(800))


def test_too_many_levels_are_refused():
    theta = torch.randn(200, 1)
    with pytest.raises(
        ValueError, match="200 to 200 levels: a likelihood of levels is for one to 40"
    ):
        DiscreteLikelihood(theta, theta)
    some = torch.cat((theta.round(), torch.full_like(theta, torch.nan)), dim=1)
    with pytest.raises(ValueError, match="have 0 to"):
        DiscreteLikelihood(theta, some)
    with pytest.raises(ValueError, match="num_levels"):
        DiscreteLikelihood(theta, theta, num_levels=0)
    with pytest.raises(ValueError, match="mlp"):
        DiscreteLikelihood(theta, theta[:, :0])


def test_values_without_a_level_of_their_own_count_once():
    """Of few rows many counts are missing: the density integrates to one all the same."""
    torch.manual_seed(3)
    theta = 2 * torch.rand(60, 1) - 1
    x = torch.poisson((2 + theta).exp())
    network = DiscreteLikelihood(theta, x)
    between = torch.arange(x.min() - 0.5, x.max() + 0.5, 0.01).unsqueeze(1)
    density = (network.log_mixture(theta[:3].unsqueeze(1), between) - network.constant).exp()
    # The statistics of data between levels lie between theirs: nearly one.
    total = 0.01 * density.sum(dim=1) / network.scale
    assert torch.allclose(total, torch.ones(3), atol=0.1)


@pytest.mark.full_fit
def test_rare_events_are_learnt():
    """Three quarters of all rows have the same loss: what is rare must count."""
    theta = 2 * torch.rand(3000, 1) - 1
    x = torch.bernoulli(torch.sigmoid(2 * theta - 2).expand(-1, 2))
    rows, held_out = (theta[:2400], x[:2400]), (theta[2400:], x[2400:])
    network = DiscreteLikelihood(*rows)
    with torch.no_grad():
        # Without the start in closed form.
        network.linear.weight.zero_()
    fit = LikelihoodFit(network, rows, held_out)
    before = fit.losses.mean()
    fit.run()
    assert fit.has_learnt
    # It is 0.06 on other rows.
    assert fit.losses.mean() < before - 0.03


def test_what_is_still_to_be_learnt_has_no_levels():
    theta, x = three_kinds(60)
    with pytest.raises(ValueError, match="still to be trained"):
        DiscreteLikelihood(theta, x).forget_start(theta)


def test_many_pairs_are_evaluated_in_parts(monkeypatch):
    theta, x = three_kinds(60)
    network = moved(DiscreteLikelihood(theta, x))
    expected = network(theta.unsqueeze(1), x)
    monkeypatch.setattr("sbi_jeffreys.likelihood.discrete._AT_ONCE", 100)
    with torch.no_grad():
        assert torch.allclose(network(theta.unsqueeze(1), x), expected, atol=1e-4)


def test_it_goes_by_the_number_of_its_form():
    theta, x = three_kinds(50)
    network = proxy_nn("likelihood", common=DISCRETE, hidden_layers=1)(theta, x)
    assert isinstance(network, DiscreteLikelihood)
    assert network.as_one
    assert not network.spreads_steps
    assert torch.equal(network.dequantize(x), x)


def test_rows_that_are_no_numbers_do_not_count():
    theta, x = three_kinds(50)
    x[3] = math.nan
    network = DiscreteLikelihood(theta, x)
    assert network.values.isfinite().all()
    assert network.values.shape[1] == x[:, 1][x[:, 1].isfinite()].unique().numel()
    assert network(theta.unsqueeze(1), x[:3]).isfinite().all()
