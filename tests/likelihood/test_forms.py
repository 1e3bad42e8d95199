import math

import pytest
import torch
from sbi_jeffreys.tasks import get_task

from sbi_jeffreys.likelihood.discrete import DISCRETE
from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.likelihood.fit import LikelihoodFit
from sbi_jeffreys.likelihood.forms import fittest
from sbi_jeffreys.proxy import proxy_nn

pytestmark = pytest.mark.full_fit


def build_for(theta, context, made=None):
    def build(common):
        torch.manual_seed(common)
        network = proxy_nn("likelihood", common=common)(theta, context)
        if made is not None:
            made.append(network)
        return network

    return build


def crescents(n):
    """Noise of two_moons' kind around a mean that bends with theta."""
    theta = 2 * torch.rand(n, 2) - 1
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n)
    noise = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
    return theta, torch.stack((theta.sum(1).abs(), theta[:, 1]), 1) + noise


def scaled(n):
    """Noise of two sizes, both of which grow with theta, in eight columns."""
    theta = 2 * torch.rand(n, 2) - 1
    noise = torch.randn(n, 8) * torch.where(torch.rand(n, 1) < 0.2, 4.0, 1.0)
    return theta, theta[:, :1] + 0.1 * (1.5 * theta[:, 1:]).exp() * noise


def slcp(n):
    """Four draws of a Gaussian whose mean, scales and correlation are functions of theta."""
    task = get_task("slcp")
    theta = task.prior.sample((n,))
    x = task.simulator(theta)
    return theta, x / x.std(0)


def torn(n):
    """Two clusters, of which one moves up with theta, and one down."""
    theta = 2 * torch.rand(n, 1) - 1
    sign = (torch.rand(n, 1) < 0.5).float() * 2 - 1
    return theta, sign * (1 + theta) + 0.1 * torch.randn(n, 1)


# With 480 rows to fit these were chosen with five of six seeds or all; the first form can say what
# the others say, and with 1,600 it is level with the last one on slcp.
@pytest.mark.parametrize(
    ("simulate", "forms"), [(crescents, {1, 2, 3}), (scaled, {2, 3}), (slcp, {3}), (torn, {0})]
)
def test_the_form_is_that_of_the_noise(simulate, forms):
    torch.manual_seed(1)
    theta, x = simulate(600)
    rows, held_out = (theta[:480], x[:480]), (theta[480:], x[480:])
    assert fittest(build_for(*rows), rows, held_out)[0].common in forms


def losses(network, rows):
    with torch.no_grad():
        return -network.log_likelihood(*rows).mean()


def test_a_form_that_moves_as_one_begins_where_its_fit_ended():
    torch.manual_seed(2)
    # Of 200 rows the first form learns 0.3 to 0.6 nats less than the best other one, with a
    # standard error of 0.1 (seeds 2 to 5); of more it may be level.
    theta, x = crescents(300)
    rows, held_out, made = (theta[:200], x[:200]), (theta[200:], x[200:]), []
    network, _ = fittest(build_for(*rows, made), rows, held_out)
    assert network.common
    start = build_for(*rows)(network.common)
    assert losses(network, held_out) < losses(start, held_out) - 0.5
    # Nothing has moved the gauge, which a likelihood alone does not know.
    assert all(map(torch.equal, network.gauge.parameters(), start.gauge.parameters()))
    assert all(p.grad is None for p in network.parameters())


def test_a_form_that_does_not_begins_anew():
    torch.manual_seed(3)
    theta, x = torn(1000)
    rows, held_out = (theta[:800], x[:800]), (theta[800:], x[800:])
    network, _ = fittest(build_for(*rows), rows, held_out)
    assert network.common == 0
    expected = build_for(*rows)(0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("c", "forms"), [(1, [0, 1, 2]), (3, [0, 1, 2, 3]), (21, [0, 1, 2])])
def test_forms_with_correlations_only_where_there_are_any(c, forms, monkeypatch):
    monkeypatch.setattr("sbi_jeffreys.likelihood.fit._STEPS", 20)
    theta, x, made = torch.randn(60, 2), torch.randn(60, c), []
    fittest(build_for(theta, x, made), (theta[:50], x[:50]), (theta[50:], x[50:]))
    assert [network.common for network in made] == forms


def test_a_fit_without_progress_ends(monkeypatch):
    theta, x = torch.randn(120, 2), torch.randn(120, 3)
    fit = LikelihoodFit(LikelihoodEnergy(theta, x), (theta[:100], x[:100]), (theta[100:], x[100:]))
    steps = []
    monkeypatch.setattr(fit, "_step", lambda: steps.append(fit.losses.mean().item()))
    fit.run()
    # Nothing has moved: four looks, and it is over.
    assert len(steps) == 80
    assert set(steps) == {fit.losses.mean().item()}


def test_the_same_seed_gives_the_same_network():
    torch.manual_seed(4)
    theta, x = crescents(300)
    rows, held_out, found = (theta[:250], x[:250]), (theta[250:], x[250:]), []
    for _ in range(2):
        build = build_for(*rows)
        networks = build(0), build(1), build(2), build(3)
        torch.manual_seed(5)
        found.append(fittest(networks.__getitem__, rows, held_out)[0].state_dict())
    assert all(map(torch.equal, found[0].values(), found[1].values()))


@pytest.mark.parametrize("row", [3, 55], ids=["fitted", "held out"])
@pytest.mark.parametrize("seed", range(8))
def test_losses_that_are_no_numbers_leave_the_first_form(row, seed):
    torch.manual_seed(seed)
    theta = torch.randn(60, 2)
    x = theta + 0.1 * torch.randn(60, 2)
    x[row] = math.nan
    rows, held_out = (theta[:50], x[:50]), (theta[50:], x[50:])
    network, _ = fittest(build_for(*rows), rows, held_out)
    assert network.common == 0
    assert all(p.isfinite().all() for p in network.parameters())


def test_data_in_steps_are_spread():
    torch.manual_seed(6)
    theta = torch.rand(400, 1) * 2 - 1
    # A column of its own kind, or the likelihood of levels would be taken.
    x = torch.bernoulli(torch.sigmoid(3 * theta).expand(-1, 3))
    x = torch.cat((x, theta + 0.5 * torch.randn(400, 1)), dim=1)
    rows, held_out = (theta[:300], x[:300]), (theta[300:], x[300:])
    network, _ = fittest(build_for(*rows), rows, held_out)
    # Undisturbed, zeros and ones would be told by Gaussians without width: losses below -5.
    with torch.no_grad():
        spread = -network.log_likelihood(theta[300:], network.dequantize(x[300:])).mean()
    assert spread > -1.0


def counts(n):
    """Counts of two kinds, with zeros in excess."""
    theta = 2 * torch.rand(n, 2) - 1
    rates = (1 + theta).exp().repeat(1, 2)
    return theta, torch.poisson(rates) * (torch.rand(n, 4) < 0.6)


def rounded(n):
    """Two sums of parameters, rounded, whose noise is mostly the same for both."""
    theta = 2 * torch.rand(n, 2) - 1
    noise = 0.5 * torch.randn(n, 1) + 0.05 * torch.randn(n, 2)
    return theta, (5 * (theta + noise)).round()


# On 200 rows the two differ by a nat and more.
@pytest.mark.parametrize(("simulate", "levels"), [(counts, True), (rounded, False)])
def test_levels_are_taken_for_such_where_columns_have_noise_of_their_own(simulate, levels):
    torch.manual_seed(7)
    theta, x = simulate(1000)
    rows, held_out = (theta[:800], x[:800]), (theta[800:], x[800:])
    network, fitted = fittest(build_for(*rows), rows, held_out)
    assert (network.common == DISCRETE) is levels
    # Those that count the same noise several times are no use to a stack either.
    assert any(each.common == DISCRETE for each in fitted) is levels


@pytest.mark.parametrize("rows", [3, 12])
def test_few_rows(rows):
    theta, x = torch.randn(rows, 2), torch.randn(rows, 3)
    network, _ = fittest(build_for(theta, x), (theta[1:], x[1:]), (theta[:1], x[:1]))
    # One row tells nothing.
    assert network.common == 0
    assert all(p.isfinite().all() for p in network.parameters())
