"""Samples behind the objective: how many, of what, and what sampling leaves as it was."""

import math

import pytest
import torch
from problems import BATCH, Problem
from torch import nn

from sbi_jeffreys.draws import Draws, ReverseQueue, negatives


def test_queue_samples_once_for_a_whole_batch(monkeypatch):
    problem = Problem()
    calls = []
    sample = problem.estimator.sample_embedded
    monkeypatch.setattr(
        problem.estimator,
        "sample_embedded",
        lambda num, context: calls.append(len(context)) or sample(num, context),
    )
    queue, draws = ReverseQueue(), Draws(fraction=0.25, jitter=0.5)
    context = problem.estimator.embed(problem.x)
    arguments = problem.estimator, problem.theta, context, torch.ones(BATCH), draws
    sets = [queue.next(*arguments) for _ in range(4)]
    assert calls == [BATCH]
    # Every row of the batch once, the first half of each set without noise.
    assert torch.equal(torch.cat([s.theta for s in reversed(sets)]), problem.theta)
    for there, own in zip(reversed(sets), context.tensor_split(4), strict=True):
        assert torch.equal(there.context[: there.plain], own[: there.plain])
        assert (there.context[there.plain :] != own[there.plain :]).any()
        assert there.samples.shape == (draws.flow, len(own), problem.theta.shape[1])
    queue.next(*arguments)
    assert calls == [BATCH, BATCH]


def test_a_row_is_no_negative_of_itself():
    """In later rounds the batch is its own sample of the proposals."""
    problem = Problem()
    estimator = problem.estimator.eval()
    theta, x = problem.theta, problem.x
    problem.base_draws = negatives(estimator, theta, 16, from_base=False)
    rows = problem.base_draws.rows
    assert sorted(rows.tolist()) == list(range(BATCH))
    terms = problem.terms(forward_loss=estimator.loss)
    # With all of the batch as negatives each row is ranked among the batch, itself once.
    ratios = estimator.proxy.log_ratio(theta[:, None], x)
    expected = (ratios.logsumexp(dim=0) - ratios.diagonal()).mean()
    torch.testing.assert_close(terms.proxy, expected, rtol=1e-4, atol=1e-5)


def modes(module):
    return {name: m.training for name, m in module.named_modules()}


# A pretrained embedding net that its owner has put into eval mode stays there.
@pytest.mark.parametrize(("training", "frozen"), [(True, False), (False, False), (True, True)])
def test_sampling_leaves_the_modes_as_they_were(training, frozen):
    problem = Problem()
    problem.estimator.train(training)
    if frozen:
        problem.embedding.eval()
    before = modes(problem.estimator)
    problem.terms()
    assert modes(problem.estimator) == before


def test_samples_are_drawn_without_dropout():
    problem = Problem()
    problem.estimator.train()
    seen = []
    dropout = nn.Dropout(0.5)
    dropout.register_forward_hook(lambda module, args, output: seen.append(module.training))
    conditioner = next(
        m for m in problem.estimator.flow.net.modules()
        if isinstance(m, nn.Sequential) and any(isinstance(c, nn.ReLU) for c in m)
    )  # fmt: skip
    conditioner.append(dropout)
    problem.terms()
    assert False in seen
    assert True in seen


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"flow": 1}, "flow must be an integer of at least 2, got 1"),
        ({"flow": 2.0}, "flow must be an integer of at least 2, got 2.0"),
        ({"base": 0}, "base must be an integer of at least 1, got 0"),
        ({"every": 1.5}, "every must be an integer of at least 1, got 1.5"),
        ({"every": True}, "every must be an integer of at least 1, got True"),
        ({"simulated": -1.0}, "simulated must not be negative, got -1.0"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": -0.5}, "fraction must not be negative, got -0.5"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": math.nan}, "fraction must not be negative, got nan"),
        ({"jitter": -0.1}, "jitter must not be negative, got -0.1"),
        ({"jitter": math.inf}, "jitter must not be negative, got inf"),
        ({"gauge": -1.0}, "gauge must not be negative, got -1.0"),
        ({"gauge": math.nan}, "gauge must not be negative, got nan"),
    ],
)
def test_errors_of_draws(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Draws(**kwargs)


def test_noise_on_x_is_in_standard_deviations_of_each_embedded_feature():
    problem = Problem()
    context = torch.randn(2000, 3) * torch.tensor([0.01, 1.0, 100.0]) + 5.0
    theta, weights = torch.zeros(2000, 2), torch.ones(2000)
    draws = Draws(flow=2, fraction=1.0, jitter=0.3)
    there = ReverseQueue().next(problem.estimator, theta, context, weights, draws)
    assert there.plain == 1000
    noise = (there.context - context)[1000:]
    # Five standard errors of a standard deviation of 1000 draws.
    relative = noise.std(dim=0) / context.std(dim=0, correction=0)
    torch.testing.assert_close(relative, torch.full((3,), 0.3), rtol=5 / 2000**0.5, atol=0)


def test_the_undisturbed_are_no_more_than_the_jittered():
    problem = Problem()
    context = torch.randn(5, 3)
    there = ReverseQueue().next(
        problem.estimator, torch.zeros(5, 2), context, torch.ones(5), Draws(fraction=1.0)
    )
    assert there.plain == 2


@pytest.mark.parametrize(("fraction", "parts"), [(1.0, 1), (0.7, 1), (0.5, 2), (0.3, 3)])
def test_a_fraction_is_rounded_to_parts_of_a_batch(fraction, parts):
    assert Draws(fraction=fraction).parts == parts
