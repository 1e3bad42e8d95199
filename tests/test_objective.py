"""One batch of the objective: every gradient goes where it should, and nowhere else."""

import math

import pytest
import torch
from problems import BATCH, PRIOR, LikelihoodProblem, Problem, gradients_of
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import nn
from torch.distributions import Independent, Normal

from sbi_jeffreys import objective
from sbi_jeffreys.base import Base
from sbi_jeffreys.divergences import log_partition, log_variance, ranking_nce
from sbi_jeffreys.draws import Draws, Negatives
from sbi_jeffreys.estimator import JeffreysEstimator
from sbi_jeffreys.objective import (
    LIMITS,
    Limits,
    batch_terms,
    flow_terms,
)

DRAWS = [
    pytest.param(Draws(), id="default"),
    pytest.param(Draws(flow=2, base=1, fraction=1.0, jitter=0.0, gauge=1.0), id="few"),
    pytest.param(Draws(flow=3, base=4, fraction=1e-6), id="one x"),
]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize(
    ("name", "models"),
    [("forward", {"flow"}), ("reverse", {"flow", "proxy"}), ("proxy", {"proxy"}),
     ("gauge", {"proxy"})],
)  # fmt: skip
def test_where_gradients_flow(name, models, draws):
    problem = Problem()
    term = getattr(problem.terms(draws=draws), name)
    assert problem.reached(term) - {"embedding"} == models


def test_the_proxy_listens_to_small_disagreements_only():
    problem = Problem()
    groups = problem.groups()

    def norms(limit):
        term = problem.terms(limits=Limits(proxy=limit)).reverse
        found = {}
        for name in ("flow", "proxy"):
            gradients = torch.autograd.grad(
                term, groups[name], retain_graph=True, allow_unused=True
            )
            found[name] = torch.cat([g.flatten() for g in gradients if g is not None])
        return found

    wide, narrow = norms(100.0), norms(1e-3)
    # The flow follows across nats, whatever the proxy listens to.
    torch.testing.assert_close(wide["flow"], narrow["flow"])
    assert 0 < narrow["proxy"].norm() < 0.05 * wide["proxy"].norm()


def test_gauge_of_a_likelihood_moves_its_gauge_alone():
    problem = LikelihoodProblem()
    network = problem.estimator.proxy.network.double()
    problem.estimator.double()
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))

    def term():
        # The same samples of the flow, and of everything else, each time.
        torch.manual_seed(1)
        return problem.terms().gauge

    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(term(), parameters, allow_unused=True)
    rate, step, used = 0.0, 1e-5, []
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        if not name.startswith("gauge."):
            assert gradient is None or not gradient.any(), name
            continue
        used.append((parameter, direction := torch.randn_like(parameter)))
        rate += (gradient * direction).sum().item()
    values = []
    for sign in (1, -2):
        for parameter, direction in used:
            parameter.data.add_(sign * step * direction)
        values.append(term().item())
    # Log Z in the term is that of the x whose g(c) is moved: the gradient is its derivative.
    assert rate == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)
    assert abs(rate) > 1e-3


def test_pairs_that_the_proxy_simulates_train_the_flow_alone():
    problem = LikelihoodProblem()
    none = problem.terms(draws=Draws(simulated=0.0)).reverse
    some = problem.terms(draws=Draws(simulated=2.5)).reverse
    proxy = [gradients_of(problem, term, "proxy") for term in (none, some)]
    torch.testing.assert_close(*proxy)
    flow = [gradients_of(problem, term, "flow") for term in (none, some)]
    assert (flow[1] - flow[0]).norm() > 0.1 * flow[0].norm()


def test_pairs_that_the_proxy_simulates_have_the_weight_of_the_batch():
    problem = LikelihoodProblem()
    weights = torch.zeros(BATCH)
    assert problem.terms(weights=weights).reverse.item() == 0


def test_a_proxy_that_cannot_simulate_does_not():
    problem = Problem()
    few, many = (problem.terms(draws=Draws(simulated=s)).reverse for s in (0.0, 5.0))
    assert few.item() == many.item()


def test_the_likelihood_does_not_train_the_embedding(monkeypatch):
    problem = LikelihoodProblem()
    gradients = {}
    for weight in (0.0, 0.3):
        monkeypatch.setattr(objective, "_LIKELIHOOD", weight)
        term = problem.terms().proxy
        for name in ("embedding", "proxy"):
            gradients.setdefault(name, []).append(gradients_of(problem, term, name))
    torch.testing.assert_close(*gradients["embedding"])
    assert gradients["embedding"][0].norm() > 0
    assert (gradients["proxy"][1] - gradients["proxy"][0]).norm() > 0


def test_the_proxy_descends_the_negative_log_likelihood(monkeypatch):
    problem = LikelihoodProblem()
    terms = []
    for weight in (0.0, 1.0):
        monkeypatch.setattr(objective, "_LIKELIHOOD", weight)
        terms.append(problem.terms().proxy)
    context = problem.estimator.embed(problem.x)
    found = (terms[1] - terms[0]).item()
    torch.manual_seed(5)  # dropout in the embedding
    context = problem.estimator.embed(problem.x)
    likelihood = problem.estimator.proxy.network.log_likelihood(problem.theta, context)
    assert found == pytest.approx(-likelihood.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shapes"), [("forward", True), ("reverse", False), ("proxy", True)]
)
def test_the_data_terms_shape_the_embedding(name, shapes):
    problem = Problem()
    assert ("embedding" in problem.reached(getattr(problem.terms(), name))) == shapes


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_every_parameter_of_the_flow_is_reached(name):
    problem = Problem()
    gradients = torch.autograd.grad(
        getattr(problem.terms(), name), problem.groups()["flow"], allow_unused=True
    )
    assert all(g is not None and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("name", ["reverse", "proxy", "gauge"])
def test_every_layer_of_the_proxy_is_reached(name):
    problem = Problem()
    parameters = dict(problem.estimator.proxy.network.named_parameters())
    assert "network.last.bias" in parameters
    gradients = torch.autograd.grad(
        getattr(problem.terms(), name), list(parameters.values()), allow_unused=True
    )
    for key, gradient in zip(parameters, gradients, strict=True):
        if key == "network.last.bias" and name != "gauge":
            # f + c leaves divergences as they are, up to the rounding of float32.
            assert gradient.abs().max() < 1e-5
        else:
            assert gradient.abs().max() > 0


def test_what_is_reported_has_no_gradient():
    terms = Problem().terms()
    assert not terms.reverse_estimate.requires_grad
    assert all(term.shape == () and term.isfinite() for term in terms)
    assert terms.gauge >= 0
    assert terms.reverse >= 0
    assert terms.proxy >= 0


def test_a_constant_in_the_proxy_moves_only_the_gauge():
    problem = Problem()
    problem.estimator.eval()
    before = problem.terms()
    with torch.no_grad():
        problem.estimator.proxy.network.network.last.bias.add_(3.0)
    after = problem.terms()
    # Float32 sums of numbers of order ten.
    for name in ("forward", "reverse", "proxy", "reverse_estimate"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=1e-4, atol=1e-4
        )
    assert abs(after.gauge - before.gauge) > 0.5


def test_terms_are_those_of_the_divergences():
    """Without jitter and dropout, everything can be computed from the public interface."""
    problem = Problem()
    estimator = problem.estimator.eval()
    draws = Draws(flow=4, base=16, fraction=1.0, jitter=0.0)
    weights = torch.rand(BATCH) + 0.5
    found = problem.terms(draws=draws, weights=weights)
    theta, x, plain = problem.theta, problem.x, BATCH // 2
    torch.manual_seed(5)
    torch.randn_like(estimator.embed(x)[plain:])  # the jitter's part of the stream
    samples = estimator.sample_embedded(4, estimator.embed(x))
    log_flow = estimator.log_prob(samples, x)
    log_proxy = estimator.proxy.log_prob_unnormalized(samples, x)
    log_z = log_partition(log_proxy, log_flow)
    # The gauge is left out: it may be estimated in several ways.
    ratios = torch.cat((
        estimator.proxy.log_ratio(theta, x),
        estimator.proxy.log_ratio(problem.base_draws.theta[:, None], x),
    ))  # fmt: skip
    at_data = estimator.proxy.log_prob_unnormalized(theta, x) - estimator.log_prob(theta[None], x)
    against_flow = ranking_nce(torch.cat((at_data[:, :plain], (log_proxy - log_flow)[:, :plain])))
    nce = (weights * ranking_nce(ratios)).mean() + (weights[:plain] * against_flow).mean()
    expected = {
        "forward": (weights * estimator.loss(theta, x)).mean(),
        # What the flow follows, and what the proxy listens to.
        "reverse": sum(
            (weights * log_variance(log_flow, log_proxy, limit=limit)).mean() for limit in LIMITS
        ),
        "proxy": nce,
        "reverse_estimate": ((log_flow - log_proxy).mean(dim=0) + log_z).mean(),
    }
    for name, value in expected.items():
        # Float32, other shapes of the same products; walls amplify near the bounds.
        torch.testing.assert_close(
            getattr(found, name),
            value,
            rtol=2e-3,
            atol=1e-4,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def test_weights_of_zero_switch_rows_off():
    problem = Problem()
    problem.estimator.eval()
    weights = torch.ones(BATCH)
    off = torch.tensor([1, 4, 11])
    weights[off] = 0.0
    theta = problem.theta.clone()
    theta[off] = -theta[off]
    before, after = problem.terms(weights=weights), problem.terms(theta=theta, weights=weights)
    for name in ("forward", "reverse", "proxy"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    switched_on = problem.terms(theta=theta)
    assert abs(switched_on.forward - after.forward) > 1e-3
    assert abs(switched_on.proxy - after.proxy) > 1e-4


@pytest.mark.parametrize("name", ["forward", "reverse", "proxy", "gauge"])
def test_all_weights_zero_leave_nothing_to_learn(name):
    problem = Problem()
    assert problem.reached(getattr(problem.terms(weights=torch.zeros(BATCH)), name)) == set()


def test_weights_scale_the_divergences():
    problem = Problem()
    once, twice = problem.terms(), problem.terms(weights=torch.full((BATCH,), 2.0))
    for name in ("forward", "reverse", "proxy"):
        torch.testing.assert_close(getattr(twice, name), 2 * getattr(once, name))


def test_forward_loss_replaces_the_flows():
    problem = Problem()
    scale = torch.nn.Parameter(torch.tensor(2.0))
    seen = []

    def loss(theta, x):
        seen.append((theta, x))
        return scale * theta[:, 0]

    terms = problem.terms(forward_loss=loss)
    assert len(seen) == 1
    assert seen[0][0] is problem.theta
    assert seen[0][1] is problem.x
    torch.testing.assert_close(terms.forward, 2 * problem.theta[:, 0].mean())
    assert torch.autograd.grad(terms.forward, scale)[0] == problem.theta[:, 0].mean()
    # Data from a proposal are contrasted with atoms only, not with the flow.
    assert problem.reached(terms.proxy) - {"embedding"} == {"proxy"}
    assert problem.reached(terms.reverse) - {"embedding"} == {"flow", "proxy"}


class Narrow(nn.Module):
    """log ratio of N(0, 0.1²) to the prior, a normalised proxy; its parameter changes nothing."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, theta, context):
        log_ratio = Independent(Normal(torch.zeros(2), 0.1), 1).log_prob(theta) + math.log(4)
        return log_ratio + 0 * context.sum(dim=-1) + self.nothing


class Fixed(ConditionalDensityEstimator):
    """N(0, 0.1²) for every x."""

    def __init__(self):
        super().__init__(nn.Identity(), torch.Size([2]), torch.Size([4]))
        self.loc = nn.Parameter(torch.zeros(2))

    def log_prob(self, input, condition, **kwargs):
        shape = torch.broadcast_shapes(input.shape[:-1], condition.shape[:-1])
        return Independent(Normal(self.loc, 0.1), 1).log_prob(input).expand(shape)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        return 0.1 * torch.randn(*sample_shape, len(condition), 2)


@pytest.mark.parametrize("hook", [False, True])
def test_the_proxy_is_ranked_against_the_flow_where_theta_are_from_the_prior(hook, monkeypatch):
    """With theta of a proposal, whatever the forward loss, both kinds of negatives would differ."""
    seen = []
    real = objective._proxy_loss

    def spy(*args, against_flow, **kwargs):
        seen.append(against_flow)
        return real(*args, against_flow=against_flow, **kwargs)

    monkeypatch.setattr(objective, "_proxy_loss", spy)
    problem = Problem()
    kwargs = {"forward_loss": problem.estimator.flow.loss} if hook else {}
    problem.terms(**kwargs)
    problem.base_draws = Negatives(PRIOR.sample((8,)), BATCH + torch.arange(8))
    problem.terms(**kwargs)
    assert seen == [1 / Draws().parts, 0.0]


@pytest.mark.parametrize("later_round", [False, True])
def test_gauge_of_a_normalised_proxy_is_zero(later_round):
    """Also when the negatives come from a proposal that is no longer the prior."""
    problem = Problem()
    flow = Fixed()
    problem.estimator = JeffreysEstimator(
        flow, problem.theta, problem.x, base=Base(PRIOR, problem.theta),
        build_proxy=lambda theta, context: Narrow(),
    )  # fmt: skip
    # Without the linear posterior that proxies start from.
    problem.estimator.proxy.network = Narrow()
    kwargs = {}
    problem.base_draws = Negatives(PRIOR.sample((20_000,)))
    if later_round:
        others = BATCH + torch.arange(20_000)
        problem.base_draws = Negatives(0.1 * torch.randn(20_000, 2), others)
        kwargs["forward_loss"] = lambda theta, x: flow.loss(theta, x)
    terms = problem.terms(theta=0.1 * torch.randn(BATCH, 2), **kwargs)
    # Relative variance of exp f under the prior: 8, by 20 000 draws.
    assert terms.gauge < 25 * 8 / 20_000
    # The two agree, and the flow is the proposal that knows it.
    assert terms.reverse_estimate.abs() < 1e-4


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("with_proxy", [False, True])
def test_the_flow_alone(hook, with_proxy):
    # A network of pairs simulates nothing: what remains is maximum likelihood.
    problem = Problem(with_proxy=with_proxy)
    problem.estimator.eval()
    weights = torch.rand(BATCH)
    loss = (lambda theta, x: problem.estimator.loss(theta, x)) if hook else None
    theta, x = problem.theta, problem.x
    terms = flow_terms(problem.estimator, theta, x, weights, Draws(), forward_loss=loss)
    expected = (weights * problem.estimator.loss(theta, x)).mean()
    torch.testing.assert_close(terms.forward, expected)
    assert problem.reached(terms.forward) == {"flow", "embedding"}
    assert [float(term) for term in terms[1:]] == [0.0] * 4
    # Zeros that join a sum with gradients.
    assert sum(terms).requires_grad


def test_the_flow_alone_learns_from_pairs_that_the_proxy_simulates():
    problem = LikelihoodProblem()
    theta, x = problem.theta, problem.x
    weights = 2.0 * torch.ones(BATCH)
    # So many pairs tell the cross-entropy of flow and proxy to within a few hundredths.
    terms = flow_terms(problem.estimator, theta, x, weights, Draws(simulated=2000.0))
    proxy = problem.estimator.proxy
    with torch.no_grad():
        own = PRIOR.sample((24_000,))
        log_prob = problem.estimator.log_prob_embedded(own[None], proxy.network.simulate(own))[0]
    assert terms.reverse.item() == pytest.approx(-2.0 * log_prob.mean().item(), abs=0.1)
    assert problem.reached(terms.reverse) == {"flow"}
    assert [float(term) for term in terms[2:]] == [0.0] * 3


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_small_batches(batch):
    problem = Problem()
    terms = batch_terms(
        problem.estimator, problem.theta[:batch], problem.x[:batch], torch.ones(batch), Draws(),
        base_draws=problem.base_draws,
    )  # fmt: skip
    assert all(term.isfinite() for term in terms)
    sum(terms[:4]).backward()
    for parameters in problem.groups().values():
        assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)


def test_data_on_the_bound_of_the_prior_stay_finite():
    """The support is closed: float32 priors far from zero draw their bounds now and then."""
    problem = Problem()
    theta = problem.theta.clone()
    theta[0] = PRIOR.support.base_constraint.upper_bound
    assert PRIOR.support.check(theta).all()
    terms = problem.terms(theta=theta)
    assert terms.forward.isfinite()
    assert terms.proxy.isfinite()
    assert terms.reverse.isfinite()
    assert terms.gauge.isfinite()
