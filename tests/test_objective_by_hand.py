"""Terms of the objective against what they are, written out, with samples chosen by hand."""

import pytest
import torch
from problems import BATCH, LikelihoodProblem, Problem

from sbi_jeffreys import objective
from sbi_jeffreys.divergences import log_mean_exp, ranking_nce
from sbi_jeffreys.draws import Draws, ReverseQueue, ReverseSet
from sbi_jeffreys.objective import BatchTerms, lagrangian


def frozen():
    """A likelihood that says something of theta, of data whose embedding is not learnt."""
    problem = LikelihoodProblem()
    problem.embedding.requires_grad_(False)
    problem.estimator.eval()
    with torch.no_grad():
        for parameter in problem.estimator.proxy.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return problem


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_likelihood_is_that_of_the_spread_batch_where_no_embedding_is_learnt(step, monkeypatch):
    problem, weights, terms = frozen(), torch.rand(BATCH), []
    network = problem.estimator.proxy.network
    monkeypatch.setattr(network, "dequantize", lambda context: context + step)
    for weight in (0.0, 1.0):
        monkeypatch.setattr(objective, "_LIKELIHOOD", weight)
        terms.append(problem.terms(weights=weights).proxy)
    seen = problem.estimator.embed(problem.x) + step
    expected = -(weights * network.log_likelihood(problem.theta, seen)).mean()
    torch.testing.assert_close(terms[1] - terms[0], expected, rtol=1e-4, atol=1e-5)


def by_hand(problem, plain=3, num=6):
    context = problem.estimator.embed(problem.x)[-num:].detach()
    samples = problem.estimator.sample_embedded(4, context)
    return ReverseSet(problem.theta[-num:], context, torch.rand(num) + 0.5, samples, plain)


def test_ranking_among_flow_samples_has_its_own_rows_weights_and_the_fraction():
    problem = Problem()
    estimator = problem.estimator.eval()
    there = by_hand(problem)
    theta, x, weights = problem.theta, problem.x, torch.rand(BATCH) + 0.5
    draws = Draws(flow=4, base=16, fraction=0.5)
    found = problem.terms(draws=draws, weights=weights, queue=ReverseQueue([there])).proxy
    proxy = estimator.proxy
    ratios = torch.cat(
        (proxy.log_ratio(theta, x), proxy.log_ratio(problem.base_draws.theta[:, None], x))
    )
    points, own = torch.cat((there.theta[None], there.samples))[:, :3], x[-6:-3]
    among = proxy.log_prob_unnormalized(points, own) - estimator.log_prob(points, own)
    expected = (weights * ranking_nce(ratios)).mean()
    expected = expected + 0.5 * (there.weights[:3] * ranking_nce(among)).mean()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_gauge_of_a_likelihood_knows_nothing_of_jittered_x():
    problem = frozen()
    there = by_hand(problem)
    moved = there.context.clone()
    moved[there.plain :] += 2.0
    gauges = [
        problem.terms(queue=ReverseQueue([s])).gauge for s in (there, there._replace(context=moved))
    ]
    torch.testing.assert_close(*gauges)
    off = there._replace(weights=torch.zeros(6))
    assert problem.terms(queue=ReverseQueue([off])).gauge == 0


def test_the_penalty_is_linear_from_three_nats_on_and_base_draws_err_downwards_only():
    log_z = torch.tensor([1.0, -10.0])
    torch.testing.assert_close(objective._gauge(log_z, None), torch.tensor([0.5, 25.5]))
    base = torch.tensor([-5.0, 5.0]).expand(8, 2)
    found = objective._gauge(0 * log_z, log_mean_exp(base))
    torch.testing.assert_close(found, torch.tensor([0.0, 10.5]))


def test_number_of_pairs_that_the_proxy_simulates(monkeypatch):
    problem, seen = LikelihoodProblem(), []
    sample = problem.estimator.proxy.base.sample
    monkeypatch.setattr(
        problem.estimator.proxy.base, "sample", lambda num: seen.append(num) or sample(num)
    )
    problem.terms(draws=Draws(simulated=1.5))
    assert seen == [round(1.5 * BATCH)]


def test_number_of_pairs_in_a_step_of_the_flow_alone(monkeypatch):
    problem, seen = LikelihoodProblem(), []
    sample = problem.estimator.proxy.base.sample
    monkeypatch.setattr(
        problem.estimator.proxy.base, "sample", lambda num: seen.append(num) or sample(num)
    )
    args = problem.estimator, problem.theta, problem.x, torch.ones(BATCH), Draws(simulated=1.5)
    objective.flow_terms(*args)
    assert seen == [round(1.5 * BATCH)]


def test_a_proxy_without_a_part_of_x_alone_is_pulled_as_a_whole_by_a_tenth():
    problem = Problem()
    estimator, there = problem.estimator.eval(), by_hand(problem)
    proxy, x = estimator.proxy, problem.x[-6:]
    log_z = objective.log_partition(
        proxy.log_prob_unnormalized(there.samples, x), estimator.log_prob(there.samples, x)
    )
    base = proxy.log_ratio(problem.base_draws.theta[:, None], x)
    expected = 0.1 * (there.weights * objective._gauge(log_z, log_mean_exp(base))).mean()
    found = problem.terms(queue=ReverseQueue([there])).gauge
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_each_multiplier_weighs_its_divergence():
    terms = BatchTerms(*torch.tensor([1.0, 10.0, 100.0, 1000.0, torch.nan]))
    assert lagrangian(terms, torch.tensor([2.0, 3.0, 4.0]), 5.0) == 5432.0
