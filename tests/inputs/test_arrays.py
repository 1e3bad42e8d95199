"""Arrays that torch takes none of, or not as they are."""

import logging
import math

import numpy as np
import pytest
import torch
from trainers import THETA, X, make

from sbi_jeffreys.inputs.arrays import check_resolution
from sbi_jeffreys.utils.checks import check_not_negative, check_positive


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


ARRAYS = {
    "as it is": lambda x: x,
    "read-only": _read_only,
    "of the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "of long doubles": lambda x: x.astype(np.longdouble),
    "masked nowhere": np.ma.masked_array,
    "a matrix": np.asmatrix,
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_layout_are_taken_as_they_are(kind):
    values = ARRAYS[kind](X.numpy())
    trainer = make().append_simulations(ARRAYS[kind](THETA.numpy()), values)
    theta, x, _ = trainer.get_simulations()
    assert torch.equal(theta, THETA)
    assert torch.equal(x, X)
    assert (np.asarray(values) == X.numpy()).all()


def in_double(offset):
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    return values + torch.tensor([0.0, offset]).double()


def test_what_float32_holds_well_enough_is_not_told_of():
    # It rounds to 6e-5 at a thousand, and to 8e-3 at a hundred thousand.
    values = in_double(1e3)
    check_resolution("x", values, values.float())
    values = in_double(1e5)
    with pytest.warns(UserWarning, match="x loses digits that matter in column 1"):
        check_resolution("x", values, values.float())


def test_a_row_without_numbers_hides_no_lost_digits():
    values = in_double(2_460_000.5)
    values[3] = math.nan
    with pytest.warns(UserWarning, match="x loses digits that matter in column 1"):
        check_resolution("x", values, values.float())


def test_codes_and_far_rows_hide_no_lost_digits():
    values = in_double(2_460_000.5)
    for far in (slice(3), slice(10)):
        values[far] = -999.0
        with pytest.warns(UserWarning, match="x loses digits that matter in column 1"):
            check_resolution("x", values, values.float())


def test_digits_of_far_rows_do_not_matter():
    values = in_double(1.0)
    values[:3] = 1e20 / 3
    check_resolution("x", values, values.float())


def test_a_column_that_never_varies_loses_nothing():
    values = in_double(0.0)
    values[:, 1] = 0.1
    check_resolution("x", values, values.float())


def test_inf_in_double_is_excluded_as_in_float32(caplog):
    x = X.double()
    x[3, 0] = math.inf
    with caplog.at_level(logging.WARNING):
        trainer = make().append_simulations(THETA, x)
    assert "1 Inf simulations" in caplog.text
    assert len(trainer.get_simulations()[0]) == 59


@pytest.mark.parametrize("check", [check_positive, check_not_negative])
def test_what_is_not_finite_is_no_rate(check):
    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"rate must .* got {value}"):
            check(rate=value)
