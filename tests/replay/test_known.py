"""What is known to do the same each time, and what is not."""

import types
from functools import partial

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.user_input_checks_utils import CustomPriorWrapper
from sbi_jeffreys.tasks import get_task, list_tasks
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    ComposeTransform,
    CumulativeDistributionTransform,
    Independent,
    IndependentTransform,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.nn.modules import module as modules

from sbi_jeffreys.replay.known import is_known

ONES = torch.ones(2)
BOX = BoxUniform(-ONES, ONES)


class Own(nn.Module):
    def forward(self, x):
        return x


class OwnNormal(Normal):
    pass


class OwnTransform(AffineTransform):
    pass


class Anything:
    mean = variance = ONES

    def sample(self, shape=()):
        return torch.rand(*shape, 2)

    def log_prob(self, theta):
        return theta.sum(-1)


def replaced() -> nn.Module:
    net = nn.Linear(2, 2)
    net.forward = lambda x: x
    return net


def hooked(register: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2))
    getattr(net[0], register)(lambda *args: None)
    return net


def watched() -> nn.Module:
    net = nn.Linear(2, 2)
    net.weight.register_hook(lambda gradient: None)
    return net


def own_activation(x):
    return x


def given(activation) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 1, 4, activation=activation)


def bent(transform) -> TransformedDistribution:
    return TransformedDistribution(LogNormal(ONES, ONES), [transform])


HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize(
    ("network", "known"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout()), True),
        (nn.Sequential(nn.Linear(2, 3), Own()), False),
        (replaced(), False),
        (watched(), False),
        (given("gelu"), True),
        (given(nn.functional.silu), True),
        (given(torch.tanh), True),
        (given(own_activation), False),
        (given(partial(torch.clamp, min=0.0)), True),
        (given(partial(own_activation)), False),
        (given(Anything().log_prob), False),
        *((hooked(f"register_{name}"), False) for name in HOOKS),
    ],
)
def test_networks(network, known):
    assert is_known(network) is known


@pytest.mark.parametrize(
    ("distribution", "known"),
    [
        (BOX, True),
        (MultivariateNormal(ONES, torch.eye(2)), True),
        (MultipleIndependent([Normal(ONES[:1], ONES[:1]), BOX]), True),
        (MixtureSameFamily(Categorical(ONES), Independent(Normal(torch.ones(2, 2), 1.0), 1)), True),
        (bent(AffineTransform(0.0, 2.0)), True),
        (OwnNormal(ONES, ONES), False),
        (Independent(OwnNormal(ONES, ONES), 1), False),
        (MultipleIndependent([OwnNormal(ONES[:1], ONES[:1]), BOX]), False),
        (bent(OwnTransform(0.0, 2.0)), False),
        (
            TransformedDistribution(
                Normal(ONES, ONES), ComposeTransform([AffineTransform(0.0, 2.0)])
            ),
            True,
        ),
        (
            TransformedDistribution(Normal(ONES, ONES), ComposeTransform([OwnTransform(0.0, 2.0)])),
            False,
        ),
        (
            TransformedDistribution(
                Normal(ONES, ONES), IndependentTransform(OwnTransform(0.0, 2.0), 1)
            ),
            False,
        ),
        (
            TransformedDistribution(BOX, [CumulativeDistributionTransform(OwnNormal(ONES, ONES))]),
            False,
        ),
        (CustomPriorWrapper(Anything(), lower_bound=-ONES, upper_bound=ONES), False),
    ],
)
def test_distributions(distribution, known):
    assert is_known(distribution) is known


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_all_modules(name):
    hook = getattr(modules, f"register_module_{name}")(lambda *args: None)
    try:
        assert not is_known(nn.Linear(2, 2))
    finally:
        hook.remove()
    assert is_known(nn.Linear(2, 2))


@pytest.mark.parametrize("name", list_tasks())
def test_priors_of_tasks_are_known(name):
    assert is_known(get_task(name).prior)


class Mine:
    """Code of a user's."""


def of_torch(**kwdefaults):
    made = types.FunctionType(nn.functional.relu.__code__, {})
    made.__module__, made.__kwdefaults__ = "torch.nn.functional", kwdefaults
    return made


@pytest.mark.parametrize(
    ("part", "known"),
    [
        (of_torch(a=1), True),
        (of_torch(a=Mine()), False),
        (partial(torch.add, alpha=2), True),
        (partial(torch.add, alpha=Mine()), False),
        (types.MethodType(nn.functional.relu, torch.zeros(1)), True),
        (types.MethodType(nn.functional.relu, Mine()), False),
        (nn.Linear(2, 2), True),
        (replaced(), False),
    ],
)
def test_what_functions_hold_is_looked_into(part, known):
    assert is_known([part]) is known
