"""A flow is the same through its embedding, which is evaluated once."""

import pytest
import torch
import zuko
from estimators import BUILDERS, CLOSE, EMBEDDING, FLOWS, PRIOR, conv_net, make, simulate
from sbi.neural_nets.estimators.zuko_flow import ZukoFlow
from sbi.utils import BoxUniform
from torch import nn

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.base import Base
from sbi_jeffreys.draws import Draws, Negatives
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.objective import batch_terms
from sbi_jeffreys.proxy import proxy_nn
from sbi_jeffreys.utils.quiet import QuietTracker

# nflows, on which sbi's "nsf" is built, calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")


def assert_embedded_is_the_same(estimator, theta, x):
    context = estimator.embed(x)
    points = torch.stack((theta, -theta, 0.5 * theta))
    expected = estimator.log_prob(points, x)
    assert expected.shape == (3, len(x))
    torch.testing.assert_close(estimator.log_prob_embedded(points, context), expected, **CLOSE)
    theta, log_prob = estimator.sample_with_log_prob(3, context)
    torch.testing.assert_close(estimator.log_prob(theta, x), log_prob, **CLOSE)
    # One context for each point: another x for each slice.
    shifted = torch.stack((x, x.roll(1, 0), x.roll(2, 0)))
    per_slice = torch.stack([estimator.log_prob(p[None], y)[0] for p, y in
                             zip(points, shifted, strict=True)])  # fmt: skip
    contexts = torch.stack([estimator.embed(y) for y in shifted])
    torch.testing.assert_close(estimator.log_prob_embedded(points, contexts), per_slice, **CLOSE)
    assert (expected - per_slice)[1:].abs().max() > 1e-2


@FLOWS
def test_log_prob_embedded(name):
    theta, x = simulate()
    assert_embedded_is_the_same(make(name, theta, x), theta[:20], x[:20])


@FLOWS
def test_samples_of_one_seed_do_not_depend_on_the_other_x(name):
    theta, x = simulate()
    estimator = make(name, theta, x)
    context = estimator.embed(x[:4])
    drawn, log_prob = estimator.sample_with_log_prob(500, context, seed=3)
    alone, log_prob_alone = estimator.sample_with_log_prob(500, context[2:3], seed=3)
    torch.testing.assert_close(drawn[:, 2:3], alone, **CLOSE)
    # Products of matrices of other sizes round in other ways, which tells where bins are narrow.
    assert (log_prob[:, 2:3] - log_prob_alone).abs().quantile(0.98) < 1e-3
    # They are samples of the flow: means of each within five standard errors.
    free = estimator.sample_embedded(500, context)
    for x_drawn, x_free in zip(drawn.unbind(1), free.unbind(1), strict=True):
        error = (x_drawn.var(dim=0) + x_free.var(dim=0)).div(500).sqrt()
        assert ((x_drawn.mean(dim=0) - x_free.mean(dim=0)).abs() < 5 * error).all()


def test_a_base_that_depends_on_x_has_noise_for_each():
    """A user's own flow of zuko's: a seed then gives each x its draws, one after the other."""
    theta, x = simulate()
    layers = zuko.flows.MAF(2, x.shape[1], transforms=2, hidden_features=[16]).transform.transforms
    net = zuko.lazy.Flow(layers, zuko.flows.mixture.GMM(2, x.shape[1], components=2))
    flow = ZukoFlow(net, nn.Identity(), theta[0].shape, x[0].shape)
    estimator = JeffreysEstimator(flow, theta, x)
    context = estimator.embed(x[:4])
    drawn, _ = estimator.sample_with_log_prob(5, context, seed=3)
    assert drawn.shape == (5, 4, 2)
    alone, _ = estimator.sample_with_log_prob(5, context[2:3], seed=3)
    torch.testing.assert_close(drawn[:, 2:3], alone, **CLOSE)


@EMBEDDING
def test_log_prob_embedded_with_an_embedding_net(name):
    theta, x = simulate(event=(1, 4, 4))
    estimator = make(name, theta, x, embedding_net=conv_net())
    assert estimator.embed(x).shape == (300, 4)
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


def test_log_prob_embedded_of_images_without_an_embedding_net():
    theta, x = simulate(event=(1, 4, 4))
    estimator = make("custom", theta, x)
    assert estimator.embed(x).shape == (300, 16)
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


@pytest.fixture(scope="module")
def trained():
    """Flows that have learned that theta_0 follows x."""
    found = {}

    def get(name, embedding):
        if (name, embedding) not in found:
            event = (1, 4, 4) if embedding else (3,)
            theta, x = simulate(500, event)
            kwargs = {"embedding_net": conv_net()} if embedding else {}
            estimator = make(name, theta, x, **kwargs).train()
            # The linear map works on raw x, ten times as large as what the others see.
            steps = 400 if name == "custom" else 50
            optimizer = torch.optim.Adam(estimator.flow.parameters(), lr=2e-2)
            for _ in range(steps):
                optimizer.zero_grad()
                estimator.loss(theta, x).mean().backward()
                optimizer.step()
            found[name, embedding] = estimator.eval()
        return found[name, embedding]

    return get


@pytest.mark.parametrize(
    ("name", "embedding"),
    [(name, False) for name in BUILDERS] + [("ours", True), ("nsf", True), ("mdn", True)],
)
def test_samples_belong_to_their_x(trained, name, embedding):
    estimator = trained(name, embedding)
    true = torch.tensor([-2.0, 2.0, 0.0])
    event = (1, 4, 4) if embedding else (3,)
    x = (2 * true + 5).reshape(-1, *[1] * len(event)).expand(3, *event).contiguous()
    samples = estimator.sample_embedded(500, estimator.embed(x))
    assert samples.shape == (500, 3, 2)
    assert not samples.requires_grad
    # Posteriors two apart; half-trained flows are less than half of that off.
    median = samples[..., 0].median(dim=0).values
    assert ((median - true).abs() < 0.9).all()
    direct = estimator.sample(torch.Size((500,)), x)[..., 0].median(dim=0).values
    assert ((median - direct).abs() < 0.5).all()


@pytest.mark.parametrize("name", ["ours", "zuko_maf", "maf", "nsf", "mdn", "made"])
@pytest.mark.parametrize("with_proxy", [True, False])
def test_embedding_net_runs_once_per_batch(name, with_proxy):
    theta, x = simulate(100, (1, 4, 4))
    embedding = conv_net()
    estimator = make(name, theta, x, embedding_net=embedding)
    if not with_proxy:
        estimator = JeffreysEstimator(estimator.flow, theta, x)
    seen = []
    embedding.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    batch_terms(
        estimator,
        theta[:20],
        x[:20],
        torch.ones(20),
        Draws(),
        base_draws=Negatives(PRIOR.sample((8,))),
    )
    assert seen == [20]


def test_embedding_leaves_the_flow_as_it_was():
    theta, x = simulate(100, (1, 4, 4))
    estimator = make("nsf", theta, x, embedding_net=conv_net())
    before = repr(estimator)
    estimator.sample_embedded(2, estimator.embed(x[:3]))
    estimator.log_prob_embedded(theta[None, :3], estimator.embed(x[:3]))
    assert repr(estimator) == before
    assert estimator.condition_shape == (1, 4, 4)
    assert estimator.flow.condition_shape == (1, 4, 4)
    # The user's net, not the stand-in.
    assert any(isinstance(m, nn.Conv2d) for m in estimator.flow.modules())


def test_rows_that_are_no_numbers_do_not_count():
    theta, x = simulate(100)
    expected = make("custom", theta, x).embed(x)
    x, theta = torch.cat((x, x[:1] * torch.nan)), torch.cat((theta, theta[:1]))
    torch.testing.assert_close(make("custom", theta, x).embed(x[:-1]), expected)


@EMBEDDING
def test_how_far_x_are_beyond_the_training_data(name):
    theta, x = simulate(100)
    estimator = make(name, theta, x)
    assert (estimator.beyond_reach(x) == 0).all()
    low, high = x.amin(dim=0), x.amax(dim=0)
    found = estimator.beyond_reach(torch.stack((high + (high - low), low - 3 * (high - low))))
    # Units of the flow's own are affine up to where it bends outliers.
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0]), rtol=0.02, atol=0.0)
    found = estimator.double().beyond_reach(x.double() * torch.nan)
    assert found.dtype == torch.float64
    assert found.isnan().all()


def test_more_simulations_reach_farther():
    theta, x = simulate(100)
    estimator = make("ours", theta, x)
    more = torch.cat((x[:5] + 100.0, x[:1] * torch.nan))
    assert (estimator.beyond_reach(more[:5]) > 1).all()
    estimator.widen_reach(more)
    assert (estimator.beyond_reach(torch.cat((x, more[:5]))) == 0).all()


def test_a_trained_flow_knows_how_far_all_simulations_reach():
    """Rare bursts beyond the first thousand rows are training data, too."""
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    theta = prior.sample((3000,))
    x = theta + 0.1 * torch.randn(3000, 2)
    x[torch.randperm(3000)[:3]] += 8.0
    trainer = JeffreysNPE(prior, seed=0, show_progress_bars=False, tracker=QuietTracker())
    trainer.append_simulations(theta[:2000], x[:2000])
    estimator = trainer.train(max_num_epochs=1)
    assert (estimator.beyond_reach(x[trainer.train_indices]) == 0).all()
    trainer.append_simulations(theta[2000:], x[2000:])
    estimator = trainer.train(max_num_epochs=1, force_first_round_loss=True)
    assert (estimator.beyond_reach(x[trainer.train_indices]) == 0).all()
    assert (estimator.beyond_reach(x.amax(dim=0, keepdim=True) + 100.0) > 1).all()


def test_where_the_embedding_is_learnt_no_x_is_far():
    theta, x = simulate(100, (1, 4, 4))
    estimator = make("ours", theta, x, embedding_net=conv_net())
    assert (estimator.beyond_reach(1e6 * x) == 0).all()


def test_constant_entries_of_x():
    theta, x = simulate(100)
    x[:, 1] = 7.0
    estimator = make("custom", theta, x)
    assert estimator.embed(x).isfinite().all()
    assert_embedded_is_the_same(estimator, theta[:20], x[:20])


@pytest.mark.parametrize("name", ["ours", "mdn", "custom"])
def test_without_a_proxy(name):
    theta, x = simulate(100)
    flow = BUILDERS[name]()(theta, x)
    estimator = JeffreysEstimator(flow, theta, x)
    assert estimator.proxy is None
    assert {id(p) for p in estimator.parameters()} == {id(p) for p in flow.parameters()}
    assert estimator.log_prob_embedded(theta[None], estimator.embed(x)).shape == (1, 100)


@pytest.mark.parametrize("name", ["ours", "maf", "custom"])
def test_double_precision(name):
    theta, x = simulate(100)
    estimator = make(name, theta, x).double()
    theta, x = theta[:10].double(), x[:10].double()
    context = estimator.embed(x)
    assert context.dtype == torch.float64
    torch.testing.assert_close(
        estimator.log_prob_embedded(theta[None], context), estimator.log_prob(theta[None], x)
    )


def build():
    theta = PRIOR.sample((60,))
    x = theta.repeat(1, 2) + 0.3 * torch.randn(60, 4)
    embedding = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    flow = flow_nn(PRIOR, hidden_features=16, embedding_net=embedding)(theta, x).train()
    return flow, embedding, theta, x


def test_building_a_proxy_leaves_running_statistics_alone():
    flow, embedding, theta, x = build()
    before = embedding[1].running_mean.clone()
    JeffreysEstimator(flow, theta, x, base=Base(PRIOR, theta), build_proxy=proxy_nn())
    assert torch.equal(embedding[1].running_mean, before)


def test_x_of_another_type_is_embedded_in_that_of_the_weights():
    flow, _, theta, x = build()
    estimator = JeffreysEstimator(flow, theta, x).eval()
    found = estimator.embed(x.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, estimator.embed(x))
