"""What all tests start from."""

import pytest
import torch
from torch import Tensor
from trainers import PRIOR

# The networks are small, and processes run side by side.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _start(request, tmp_path, monkeypatch) -> None:
    """A fixed seed, and a folder of its own: sbi writes logs to where it is."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # Elsewhere these fits would take a second for each training.
    if not any(map(request.node.get_closest_marker, ("full_fit", "slow"))):
        monkeypatch.setattr("sbi_jeffreys.likelihood.fit._STEPS", 20)


@pytest.fixture
def simulations() -> tuple[Tensor, Tensor]:
    """Eighty simulations of a shift with noise: theta and x, shapes (80, 2)."""
    theta = PRIOR.sample((80,))
    return theta, theta + 0.2 * torch.randn(80, 2)
