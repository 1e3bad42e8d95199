"""The spline against zuko's, the same function by another route, in float64."""

import pytest
import torch
from splines import SETTINGS
from zuko.transforms import MonotonicRQSTransform

from sbi_jeffreys.layers.splines import RationalQuadraticSpline

# float64 against float64: a few hundred operations on numbers of order ten.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def both(phi, bound=5.0, slope=1e-3):
    bins = (phi.shape[-1] + 1) // 3
    theirs = MonotonicRQSTransform(
        *phi.split((bins, bins, bins - 1), dim=-1), bound=bound, slope=slope
    )
    return RationalQuadraticSpline(phi, bound, slope), theirs


def parameters(*shape, bins=8, scale=2.0):
    return (scale * torch.randn(*shape, 3 * bins - 1, dtype=torch.float64)).requires_grad_()


@SETTINGS
def test_values_and_gradients_are_those_of_zuko(bins, scale, bound, slope):
    phi = parameters(200, 3, bins=bins, scale=scale)
    x = (1.3 * bound * (2 * torch.rand(200, 3, dtype=torch.float64) - 1)).requires_grad_()
    assert (x.abs() > bound).any()
    to_y, to_ladj = torch.randn(2, 200, 3, dtype=torch.float64)
    found = []
    for spline in both(phi, bound, slope):
        y, ladj = spline.call_and_ladj(x)
        gradients = torch.autograd.grad((to_y * y + to_ladj * ladj).sum(), (x, phi))
        found.append((y, ladj, *gradients))
    for ours, theirs in zip(*found, strict=True):
        scale = theirs.abs().max().clamp_min(1.0)
        torch.testing.assert_close(ours / scale, theirs / scale, **CLOSE)
    assert found[0][3].abs().sum() > 0


@SETTINGS
def test_inverse_is_that_of_zuko(bins, scale, bound, slope):
    phi = parameters(200, 3, bins=bins, scale=scale).detach()
    y = 1.3 * bound * (2 * torch.rand(200, 3, dtype=torch.float64) - 1)
    ours, theirs = both(phi, bound, slope)
    # The quadratic formula amplifies rounding by the largest slope, 1e3 to 1e4 here.
    torch.testing.assert_close(ours.inv(y), theirs.inv(y), rtol=0, atol=1e-8 * bound)
    torch.testing.assert_close(ours(ours.inv(y)), y, rtol=0, atol=1e-7 * bound)


def test_parts_of_the_transform_agree():
    spline = RationalQuadraticSpline(parameters(50).detach())
    x = torch.randn(50, dtype=torch.float64)
    y, ladj = spline.call_and_ladj(x)
    assert (spline(x) == y).all()
    assert (spline.log_abs_det_jacobian(x, y) == ladj).all()
    assert "bins=8" in repr(spline)


def test_gradcheck():
    phi = parameters(6, bins=4, scale=1.0)
    # Inside, at any distance from the knots that finite differences of 1e-6 need, and outside.
    x = torch.tensor([-4.1, -1.03, 0.2, 1.7, 4.6, 6.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, phi: RationalQuadraticSpline(phi).call_and_ladj(x), (x, phi)
    )


@pytest.mark.parametrize(
    ("x_shape", "phi_shape"),
    [
        ((7, 1), (5,)),
        ((5,), (7, 5)),
        ((), (4,)),
        ((3, 1, 2), (4, 1)),
        ((4, 2), ()),
        ((), ()),
        ((0,), ()),
    ],
    ids=str,
)
def test_broadcasting(x_shape, phi_shape):
    phi = parameters(*phi_shape)
    x = torch.randn(x_shape, dtype=torch.float64, requires_grad=True)
    shape = torch.broadcast_shapes(x_shape, phi_shape)
    found, expected = [], []
    for into, spline in zip((found, expected), both(phi), strict=True):
        y, ladj = spline.call_and_ladj(x if into is found else x.expand(shape))
        assert y.shape == ladj.shape == shape
        into += [y, ladj, *torch.autograd.grad((y.square() + ladj).sum(), (x, phi))]
        into.append(spline.inv(x.detach() if into is found else x.detach().expand(shape)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_identity_outside_of_the_bound():
    spline = RationalQuadraticSpline(parameters(1), bound=2.0)
    values = [-1e30, -50.0, -2.0, 2.0, 3.0, 1e30]
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y, ladj = spline.call_and_ladj(x)
    assert (y == x).all()
    assert (ladj == 0).all()
    assert (spline.inv(x.detach()) == x).all()
    assert (spline.inv(x) == x).all()
    by_x, by_phi = torch.autograd.grad((3 * y + ladj).sum(), (x, spline.parameters))
    assert (by_x == 3).all()
    assert (by_phi == 0).all()


def test_infinite_entries_do_not_spoil_gradients():
    phi = parameters(3)
    x = torch.tensor([-torch.inf, 0.3, torch.inf], dtype=torch.float64)
    y, ladj = RationalQuadraticSpline(phi).call_and_ladj(x)
    assert (y[[0, 2]] == x[[0, 2]]).all()
    gradient = torch.autograd.grad(y[1] + ladj.sum(), phi)[0]
    assert gradient.isfinite().all()
    assert (gradient[[0, 2]] == 0).all()


def test_monotone_and_smooth_at_extreme_parameters():
    # One more dimension, along which the points of each spline lie.
    phi = parameters(20, 1, scale=100.0).detach()
    spline, theirs = both(phi)
    x = torch.linspace(-5.1, 5.1, 5001, dtype=torch.float64)
    assert (spline(x).diff(dim=-1) > 0).all()
    # On both sides of the knots: the heights and slopes that zuko's spline prescribes there.
    knots, heights, slopes = (
        t.squeeze(1) for t in (theirs.horizontal, theirs.vertical, theirs.derivatives)
    )
    for step in (-1e-12, 1e-12):
        y, ladj = spline.call_and_ladj(knots + step)
        # The slope is at most 1e4, and changes by at most 1e9 times itself per unit.
        torch.testing.assert_close(y, heights, rtol=0, atol=1e-8)
        torch.testing.assert_close(ladj, slopes.log(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_float32_accuracy(scale):
    phi = parameters(2000, 8, scale=scale).detach()
    x = 2.5 * torch.randn(2000, 8, dtype=torch.float64)
    phi, x = phi.float().double(), x.float().double()
    exact_y, exact_ladj = RationalQuadraticSpline(phi).call_and_ladj(x)
    single = RationalQuadraticSpline(phi.float())
    y, ladj = single.call_and_ladj(x.float())
    assert y.dtype == ladj.dtype == torch.float32
    # Steep bins amplify rounding, in every implementation: zuko's in float32 sets the scale.
    _, theirs = both(phi.float())
    y_theirs, ladj_theirs = theirs.call_and_ladj(x.float())
    for ours, other, exact in (
        (y, y_theirs, exact_y),
        (ladj, ladj_theirs, exact_ladj),
        (single.inv(y), theirs.inv(y), RationalQuadraticSpline(phi).inv(y.double())),
    ):
        for quantile in (0.5, 0.99):
            error = (ours - exact).abs().quantile(quantile)
            assert error <= 2 * (other - exact).abs().quantile(quantile) + 1e-7
    assert (y - exact_y).abs().quantile(0.99) < 1e-4


@pytest.mark.parametrize("of", ["x", "parameters", "both"])
def test_second_derivatives(of):
    """As for a Laplace approximation; the first are those of the other way, which is faster."""
    phi, x = parameters(5), 2 * torch.randn(5, dtype=torch.float64)
    phi.requires_grad_(of != "x"), x.requires_grad_(of != "parameters")
    wanted = [each for each in (x, phi) if each.requires_grad]
    y, ladj = RationalQuadraticSpline(phi).call_and_ladj(x)
    fast = torch.autograd.grad((y.sin() + ladj).sum(), wanted, retain_graph=True)
    slow = torch.autograd.grad((y.sin() + ladj).sum(), wanted, create_graph=True)
    torch.testing.assert_close(slow, fast, rtol=1e-9, atol=1e-9)

    # torch's own check, by differences of the first derivatives.
    def function(*inputs):
        given = dict(zip([id(each) for each in wanted], inputs, strict=True))
        y, ladj = RationalQuadraticSpline(given.get(id(phi), phi)).call_and_ladj(
            given.get(id(x), x)
        )
        return y, ladj

    assert torch.autograd.gradgradcheck(function, wanted)
