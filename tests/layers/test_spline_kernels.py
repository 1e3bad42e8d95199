"""The kernels of a GPU say what operations of torch say.

Where there is no GPU they are interpreted by Triton on the CPU; skipped where there is no Triton.
"""

import os

import pytest
import torch
from splines import SETTINGS

if not torch.cuda.is_available():
    # Before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", "3.2", reason="Triton comes with a torch that knows GPUs")

from sbi_jeffreys.kernels import splines as kernels
from sbi_jeffreys.layers import spline_operations as operations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# float64 against float64: a few hundred operations on numbers of order ten.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def numbers(*shape, scale=1.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(DEVICE)


def entries(*shape, bound):
    """Inside of the bound and outside."""
    return (1.3 * bound * (2 * torch.rand(*shape, dtype=torch.float64) - 1)).to(DEVICE)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp_min(1.0)
        torch.testing.assert_close(one / scale, other / scale, **CLOSE)


@SETTINGS
def test_image_and_gradient(bins, scale, bound, slope):
    phi = numbers(3, 3 * bins - 1, 300, scale=scale)
    # In memory the other way round, and one number for many.
    x, gy, gl = entries(300, 3, bound=bound).mT, numbers(3, 300), numbers(1, 300).expand(3, -1)
    found, expected = (by.image(x, phi, bound, slope) for by in (kernels, operations))
    assert_same(found[:2], expected[:2])
    gradients = [
        by.image_gradient(gy, gl, bound, slope, *kept)
        for by, (_, _, *kept) in ((kernels, found), (operations, expected))
    ]
    assert_same(*gradients)
    assert gradients[1][1].abs().sum() > 0


@SETTINGS
@pytest.mark.parametrize("rows", [(1, 60), (4, 60), (1, 1), (4, 1)])
def test_inverse_with_parameters_of_their_own_and_shared_ones(rows, bins, scale, bound, slope):
    phi = numbers(2, 3 * bins - 1, *rows, scale=scale)
    y = entries(2, 4, 60, bound=bound)
    options = bound, slope
    expected = operations.inverse(y, phi, *options, with_slope=True)
    # The quadratic formula amplifies rounding by the largest slope, 1e3 to 1e4 here.
    for found, other in zip(
        kernels.inverse(y, phi, *options, with_slope=True), expected, strict=True
    ):
        torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-6)


def test_none_and_one():
    phi = numbers(2, 14, 0)
    none = numbers(2, 0)
    assert kernels.image(none, phi, 5.0, 1e-3)[0].shape == (2, 0)
    assert kernels.image_gradient(none, none, 5.0, 1e-3, none, phi)[1].shape == phi.shape
    assert kernels.inverse(none, phi, 5.0, 1e-3, with_slope=True)[0].shape == (2, 0)
    one = numbers(2)
    found = kernels.inverse(one, numbers(2, 14), 5.0, 1e-3, with_slope=True)[0]
    assert found.shape == (2,)


def test_what_is_not_a_number_stays_so():
    phi = numbers(1, 14, 3)
    phi[0, 2, 0] = torch.nan
    x = torch.tensor([[0.1, torch.nan, 0.2]], dtype=torch.float64, device=DEVICE)
    y, log_slope, *_ = kernels.image(x, phi, 5.0, 1e-3)
    assert y.isnan().tolist() == [[True, True, False]]
    assert log_slope.isnan().tolist() == [[True, False, False]]
