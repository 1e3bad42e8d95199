"""What flow and proxy see of x: which columns are bent, and what becomes of their steps."""

import math
import warnings

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, LogNormal, Normal, Poisson

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.base import Base
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.features.columns import Features, features_of
from sbi_jeffreys.features.scales import from_outliers, nearer_as_logarithms
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.likelihood.energy import LikelihoodEnergy
from sbi_jeffreys.proxy import proxy_nn

PRIOR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


def bending(x):
    """Return the features with all columns bent that are nearer to a Gaussian so."""
    return Features(x, *nearer_as_logarithms(x[x.isfinite().all(dim=1)]))


def counts(theta):
    """Return counts of some decades, shape (n, 3), for theta (n, 2)."""
    log_rate = 2 + theta[:, :1] + theta[:, 1:] * torch.linspace(-1, 1, 3)
    return Poisson(log_rate.exp()).sample()


NORMAL = torch.randn(1000, generator=torch.Generator().manual_seed(0))
COLUMNS = {
    "log-normal": (NORMAL.exp(), True),
    "log-normal below zero": (-NORMAL.exp(), True),
    "log-normal in small units": (1e-21 * NORMAL.exp(), True),
    "log-normal in large units": (1e16 * NORMAL.exp(), True),
    "log-normal, half of it zero": (NORMAL.exp() * (NORMAL.sign() > 0), True),
    "log-normal over forty decades": ((23 * NORMAL).clamp(-87, 80).exp(), True),
    "log-normal of both signs": ((2 * NORMAL).sinh(), False),
    "narrow": (1 + 0.01 * NORMAL.exp(), False),
    "normal": (NORMAL, False),
    "normal and positive": (10 + NORMAL, False),
    "uniform": (NORMAL.sort().indices.float() / 1000, False),
    "binary": ((NORMAL > 1).float(), False),
    "rare": (NORMAL.exp() * (NORMAL > 2.5), False),
    "zero": (torch.zeros(1000), False),
    "constant": (torch.full((1000,), 3.0), False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_are_nearer_to_gaussian_as_logarithms_are_bent(name):
    column, bent = COLUMNS[name]
    assert bending(column[:, None]).bent.tolist() == [bent]


def test_features_have_mean_zero_and_standard_deviation_one():
    x = torch.stack([column for column, _ in COLUMNS.values()], dim=1)
    y = bending(x)(x)
    varies = x.std(dim=0) > 0
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(len(COLUMNS)), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(dim=0)[varies], torch.ones(int(varies.sum())))


def test_columns_that_are_not_bent_are_standardised_to_the_bit():
    x = torch.randn(500, 4) * torch.tensor([1e-6, 0.3, 1.0, 7.0])
    assert torch.equal(bending(x)(x), (x - x.mean(dim=0)) / x.std(dim=0))


def test_the_unit_does_not_matter():
    x = NORMAL.exp()[:, None]
    torch.testing.assert_close(bending(2.0**-70 * x)(2.0**-70 * x), bending(x)(x))


def test_above_the_unit_features_are_logarithms_and_below_zero_they_go_on():
    features = bending(NORMAL.exp()[:, None])
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None]
    differences = (features(x) * features.std).diff(dim=0)
    # ln 10, up to (u / x)^2 with a unit of 0.1.
    torch.testing.assert_close(differences, torch.full((3, 1), 10.0).log(), atol=0.01, rtol=0)
    y = features(torch.tensor([-5.0, -0.01, 0.0, 0.01, 5.0])[:, None])
    assert (y.diff(dim=0) > 0).all()


def test_rows_that_are_not_finite_do_not_count():
    x = NORMAL.exp()[:, None].repeat(1, 2)
    x[3, 0], x[5, 1] = float("nan"), float("inf")
    kept = torch.ones(1000, dtype=torch.bool)
    kept[[3, 5]] = False
    torch.testing.assert_close(bending(x)(x[kept]), bending(x[kept])(x[kept]))
    assert bending(x)(x)[3, 0].isnan()


@pytest.mark.parametrize("rows", [0, 1])
def test_without_rows_nothing_happens(rows):
    x = torch.full((rows, 3), 5.0)
    assert torch.equal(bending(x)(x), x)


def test_steps_are_those_of_the_data():
    x = counts(PRIOR.sample((500,)))
    features = bending(x)
    assert features.bent.all()
    moved = torch.rand_like(x) - 0.5
    found = features.spread_steps(features(x), moved / features.unit)
    torch.testing.assert_close(found, features(x + moved), atol=1e-4, rtol=0)


def test_a_likelihood_spreads_counts_over_their_steps():
    theta = PRIOR.sample((500,))
    x = torch.cat((counts(theta), torch.randn(500, 1).exp(), theta.round()), dim=1)
    features = bending(x)
    assert features.bent.tolist() == [True] * 4 + [False] * 2
    network = LikelihoodEnergy(theta, features(x))
    network.follow(features, x)
    torch.testing.assert_close(network.gaps[:3] * features.unit[:3], torch.ones(3))
    assert network.gaps[3] == 0
    torch.testing.assert_close(network.gaps[4:] * features.std[4:], torch.ones(2))
    spread = network.dequantize(features(x))
    assert torch.equal(spread[:, 3].round(decimals=4), features(x)[:, 3].round(decimals=4))
    # Counts that differ stay apart, and none stays where it was.
    back = (spread * features.std + features.mean)[:, :3].sinh() * features.unit[:3]
    assert torch.equal(back.round(), x[:, :3])
    assert ((back - x[:, :3]).abs() > 1e-3).float().mean() > 0.98


def test_the_linear_start_explains_more_of_counts():
    theta = PRIOR.sample((1000,))
    x = counts(theta)
    losses = [
        flow_nn(PRIOR, embedding_net=network)(theta, x).loss(theta, x).mean().item()
        for network in (None, nn.Flatten())
    ]
    # Half a nat where logarithms of the rates are linear in theta.
    assert losses[0] < losses[1] - 0.5


def test_columns_are_bent_only_where_that_says_more_of_theta():
    theta = PRIOR.sample((1000,))
    log_linear = counts(theta)
    assert features_of(theta, log_linear).bent.all()
    # Nearer to Gaussian as a logarithm, but its square root is what is linear in theta.
    squares = (theta + 5).square() * torch.tensor([1.0, 1e3]) + 1e-3
    exponential = -torch.rand(1000, 2).log() * 1e-3
    x = torch.cat((squares, exponential), dim=1)
    assert bending(x).bent.any()
    assert not features_of(theta, x).bent.any()


def test_logarithms_of_x_go_with_those_of_theta():
    theta = LogNormal(0.0, 0.7).sample((1000, 2))
    noise = (0.1 * torch.randn(1000, 2)).exp()
    x = torch.stack((theta.prod(dim=1), theta[:, 0] / theta[:, 1]), dim=1) * noise
    # Neither alone makes it linear; both do.
    assert features_of(theta, x).bent.all()


def test_the_estimator_tells_its_proxy_of_the_steps_of_x():
    theta = PRIOR.sample((500,))
    x = counts(theta)
    flow = flow_nn(PRIOR)(theta, x)
    build = proxy_nn("likelihood")
    estimator = JeffreysEstimator(flow, theta, x, base=Base(PRIOR, theta), build_proxy=build)
    features = flow.embedding_net[0]
    assert features.bent.all()
    torch.testing.assert_close(estimator.proxy.network.gaps * features.unit, torch.ones(3))


def test_a_proxy_whose_embedding_is_still_to_be_learnt_has_no_logarithms():
    prior = Independent(LogNormal(torch.zeros(2), 2.0), 1)
    theta = prior.sample((500,))
    x = theta.log() + 0.1 * torch.randn(500, 2)
    flow = flow_nn(prior, embedding_net=nn.Linear(2, 2))(theta, x)
    build = proxy_nn("likelihood")
    estimator = JeffreysEstimator(flow, theta, x, base=Base(prior, theta), build_proxy=build)
    assert not estimator.proxy.network.standard_theta.bent.any()


def test_of_very_many_columns_none_is_bent():
    theta = PRIOR.sample((100,))
    x = counts(theta).repeat(1, 200)
    assert not features_of(theta, x).bent.any()


def test_images_and_what_a_network_of_the_user_sees_are_left_as_they_are():
    theta, x = torch.randn(200, 2), torch.randn(200, 1, 4, 4).exp()
    for data, network in ((x, None), (x.flatten(1), nn.Flatten())):
        flow = flow_nn(PRIOR, embedding_net=network)(theta, data)
        assert not any(isinstance(module, Features) for module in flow.modules())


def test_columns_of_two_values_are_left_as_they_are():
    """Of two values any scale makes the same."""
    x = torch.tensor([[1.0], [100.0]]).repeat(50, 1)
    assert not nearer_as_logarithms(x)[0].any()
    assert nearer_as_logarithms(torch.cat((x, x.new_full((50, 1), 10.0))))[0].all()


def contaminated(theta, size=1e6):
    """Return three copies of theta (n, 2) with noise, a tenth of which is of another size."""
    x = theta.repeat(1, 3) + 0.2 * torch.randn(len(theta), 6)
    return x + size * (torch.rand_like(x) < 0.1) * torch.randn_like(x)


OUTLIERS = {
    "normal": (NORMAL, False),
    "one": (torch.cat((NORMAL, torch.tensor([1e6]))), True),
    "heavy tails": (NORMAL.sign() * NORMAL.abs().exp(), False),
    "a tenth": (torch.where(NORMAL > 1.3, 1e4 * NORMAL, NORMAL) + 50.0, True),
    "nothing but zero beside them": (torch.where(NORMAL > 1.3, 1e4, 0.0), False),
    "constant": (torch.full((100,), 3.0), False),
    "more than half zero": (
        torch.cat((torch.zeros(1500), NORMAL.sign() / 1.4826, torch.tensor([1e6]))),
        True,
    ),
    "few rows": (torch.tensor([1.0, 2.0, 1e9]), False),
}


@pytest.mark.parametrize("unit", [2.0**-80, 1.0, 2.0**60])
@pytest.mark.parametrize("name", OUTLIERS)
def test_gross_outliers_are_told_in_any_unit(name, unit):
    column, expected = OUTLIERS[name]
    gross, width, center = from_outliers(unit * column[:, None])
    assert gross.tolist() == [expected]
    if expected:
        # Of the others: a standard normal, to five standard errors of a thousand rows.
        middle = 50.0 if name == "a tenth" else 0.0
        torch.testing.assert_close(center / unit, torch.full((1,), middle), atol=0.25, rtol=0)
        torch.testing.assert_close(width / unit, torch.ones(1), atol=0.25, rtol=0)
    else:
        assert (width.item(), center.item()) == (1.0, 0.0)


def test_beside_gross_outliers_data_can_be_told_from_each_other():
    theta = PRIOR.sample((500,))
    x = contaminated(theta)
    features = features_of(theta, x)
    assert features.bent.all()
    clean = x.abs() < 10
    # A hundred thousand times less in standard deviations of x.
    assert (features(x)[clean].std() > 0.05).all()
    steps = torch.rand_like(x) - 0.5
    found = features.spread_steps(features(x), steps / features.unit)
    torch.testing.assert_close(found[clean], features(x + steps)[clean], atol=1e-3, rtol=0)


def test_one_outlier_among_many_rows_is_seen_wherever_it_is():
    theta = PRIOR.sample((10_000,))
    for row in (0, 5001, 9999):
        x = theta + 0.1 * torch.randn(10_000, 2)
        x[row, 1] = 1e9
        features = features_of(theta, x)
        assert features.bent.tolist() == [False, True]
        assert (features(x)[1:9999:2].std(dim=0) > 0.9).all()


def test_gross_outliers_do_not_hide_what_the_others_say():
    theta = 2 * torch.rand(1000, 2) - 1
    x = contaminated(theta)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    trainer = JeffreysNPE(prior, objective="ml", seed=0, show_progress_bars=False)
    with warnings.catch_warnings():
        # sbi would warn of them, and of what they do to standard deviations.
        warnings.filterwarnings("error", "Data has extreme outliers")
        trainer.append_simulations(theta[:800], x[:800])
    estimator = trainer.train(max_num_epochs=60)
    loss = estimator.loss(theta[800:], x[800:]).mean().item()
    # The prior has log 4, all that x in standard deviations leaves; 0.0 to -0.4 is reached.
    assert loss < math.log(4) - 1


def test_features_that_were_saved_without_a_center_have_none():
    x = NORMAL.exp()[:, None]
    features = bending(x)
    saved = features.state_dict()
    del saved["center"]
    contaminated_too = torch.cat((NORMAL, torch.tensor([1e6])))[:, None] + 5.0
    other = Features(contaminated_too, *from_outliers(contaminated_too))
    assert other.center.item() > 4
    other.load_state_dict(saved)
    assert torch.equal(other(x), features(x))
