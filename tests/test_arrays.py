"""Arrays that torch takes none of, or not as they are."""

import numpy as np
import pytest
import torch
from trainers import THETA, X, make


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
