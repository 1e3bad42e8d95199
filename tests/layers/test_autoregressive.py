"""Autoregressive spline layers against zuko's own evaluation of the same layers, in float64."""

import copy
from functools import partial

import pytest
import torch
import zuko
from torch import nn
from zuko.transforms import MonotonicRQSTransform

from sbi_jeffreys.layers.autoregressive import AutoregressiveSpline, accelerate

# float64 against float64: products and splines in another order of summation.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
D, C = 5, 3


def layers(passes=2, context=C, order=None, **kwargs):
    """Return ours and zuko's, with the same weights."""
    theirs = zuko.flows.MaskedAutoregressiveTransform(
        D,
        context,
        passes=passes,
        order=order,
        univariate=partial(MonotonicRQSTransform, slope=1e-2),
        shapes=[(4,), (4,), (3,)],
        hidden_features=[16, 16],
        **kwargs,
    ).double()
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    assert isinstance(
        ours(torch.zeros(context).double() if context else None), AutoregressiveSpline
    )
    return ours, theirs


SETTINGS = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"passes": None},
        {"passes": 4},  # in five features: the last group is empty
        {"passes": 3, "order": [4, 0, 2, 1, 3]},
        {"activation": nn.Tanh},
        {"residual": True},
    ],
    ids=str,
)


@SETTINGS
def test_values_and_gradients_are_those_of_zuko(settings):
    x = (3 * torch.randn(40, D, dtype=torch.float64)).requires_grad_()
    c = torch.randn(40, C, dtype=torch.float64, requires_grad=True)
    to_y, to_ladj = torch.randn(40, D, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    found = []
    for layer in layers(**settings):
        y, ladj = layer(c).call_and_ladj(x)
        value = (to_y * y).sum() + (to_ladj * ladj).sum()
        found.append((y, ladj, *torch.autograd.grad(value, (x, c, *layer.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@SETTINGS
@pytest.mark.parametrize(
    ("y_shape", "c_shape"),
    [
        ((7,), (7,)),
        ((4, 7), (7,)),
        ((4, 7), ()),
        ((), (7,)),
        ((), ()),
        ((2, 4, 7), (4, 1)),
    ],
    ids=str,
)
def test_shapes_and_the_inverse_are_those_of_zuko(settings, y_shape, c_shape):
    ours, theirs = layers(**settings)
    c = torch.randn(*c_shape, C, dtype=torch.float64)
    y = 3 * torch.randn(*y_shape, D, dtype=torch.float64)
    for mine, zukos in ((ours(c), theirs(c)), (ours(c).inv, theirs(c).inv)):
        # zuko's inverse wants to be told the shape.
        whole = y.expand(*torch.broadcast_shapes(y_shape, c_shape), D)
        torch.testing.assert_close(mine(y), zukos(whole), rtol=0, atol=1e-8)
    found, expected = (t(c).log_abs_det_jacobian(y, None) for t in (ours, theirs))
    torch.testing.assert_close(found, expected, **CLOSE)
    x, ladj = ours(c).inverse_and_ladj(y)
    assert torch.equal(x, ours(c).inv(y))
    # The inverse is known to 1e-8, the slope there as well.
    torch.testing.assert_close(ladj, theirs(c).log_abs_det_jacobian(x, None), rtol=0, atol=1e-6)


@SETTINGS
def test_no_rows(settings):
    ours, _ = layers(**settings)
    c, none = torch.randn(7, C, dtype=torch.float64), torch.zeros(0, 7, D, dtype=torch.float64)
    assert ours(c)(none).shape == ours(c).inv(none).shape == (0, 7, D)
    assert ours(c).call_and_ladj(none)[1].shape == (0, 7)


def test_without_a_condition():
    ours, theirs = layers(context=0)
    y = torch.randn(6, 4, D, dtype=torch.float64)
    torch.testing.assert_close(ours(None)(y), theirs(None)(y), **CLOSE)
    torch.testing.assert_close(ours(None).inv(y), theirs(None).inv(y), rtol=0, atol=1e-8)


@SETTINGS
def test_the_inverse_has_the_gradient_of_the_inverse(settings):
    # Reparameterised samples need it; zuko's is by autograd, through all passes.
    c = torch.randn(4, C, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True)
    to_x = torch.randn(2, 4, D, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((to_x * layer(c).inv(y)).sum(), (y, c, *layer.parameters()))
        for layer in layers(**settings)
    )
    for mine, zukos in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, zukos, rtol=1e-7, atol=1e-7)


def test_the_first_group_is_evaluated_once_for_all_samples_at_a_condition(monkeypatch):
    ours, _ = layers()
    rows = []
    evaluate = AutoregressiveSpline._parameters
    monkeypatch.setattr(
        AutoregressiveSpline,
        "_parameters",
        lambda self, x, *rest: rows.append(x.shape[1]) or evaluate(self, x, *rest),
    )
    ours(torch.randn(7, C, dtype=torch.float64)).inv(torch.randn(100, 7, D, dtype=torch.float64))
    assert rows == [7, 700]


def test_an_empty_condition_has_a_shape_all_the_same():
    ours, _ = layers(context=0)
    y = torch.randn(6, 1, D, dtype=torch.float64)
    with_shape = ours(torch.zeros(4, 0, dtype=torch.float64))
    torch.testing.assert_close(with_shape(y), ours(None)(y).expand(6, 4, D))
    torch.testing.assert_close(with_shape.inv(y), ours(None).inv(y).expand(6, 4, D))


@pytest.mark.parametrize("place", [2, 4])
def test_what_is_done_to_a_network_afterwards_is_seen(place):
    ours, theirs = layers()
    c, x = torch.randn(6, C, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.hyper[place].register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(ours(c)(x), theirs(c)(x), **CLOSE)
    torch.testing.assert_close(ours(c).inv(x), theirs(c).inv(x), rtol=0, atol=1e-8)


def test_layers_without_an_order_keep_zukos_passes():
    adjacency = torch.ones(D, D, dtype=torch.bool).tril()
    layer = zuko.flows.MaskedAutoregressiveTransform(
        D,
        C,
        adjacency=adjacency,
        univariate=partial(MonotonicRQSTransform, slope=1e-2),
        shapes=[(4,), (4,), (3,)],
    )
    c, x = torch.randn(6, C), torch.randn(6, D)
    before = layer(c)(x)
    accelerate(layer)
    assert not isinstance(layer(c), AutoregressiveSpline)
    torch.testing.assert_close(layer(c)(x), before)


def test_the_groups_stay_where_they_are_as_long_as_the_order_says_the_same():
    """What is recorded on a GPU reads them there."""
    ours, _ = layers()
    before = ours.groups()
    ours.load_state_dict(ours.state_dict())
    assert all(one is other for one, other in zip(ours.groups(), before, strict=True))
    state = ours.state_dict()
    state["order"] = state["order"].flip(0)
    ours.load_state_dict(state)
    # Without a look at it in a step, for which a GPU would have to wait.
    assert ours._found[1] == ours.order._version
    expected = [(ours.order == group).nonzero().squeeze(-1) for group in ours.order.unique()]
    assert all(map(torch.equal, ours.groups(), expected))
    assert not all(map(torch.equal, before, expected))


@pytest.mark.parametrize("passes", [2, D])
def test_gradients_that_are_differentiated_again_are_those_of_zuko(passes):
    """Splines of one feature depend on others: there are partial derivatives, and whole ones."""
    found = []
    start, condition = torch.randn(7, D).double(), torch.randn(7, C).double()
    for layer in layers(passes):
        x = start.clone().requires_grad_()
        y, ladj = layer(condition).call_and_ladj(x)
        (first,) = torch.autograd.grad(y.square().sum() + ladj.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((first.detach(), second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
