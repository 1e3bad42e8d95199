"""Adam: torch's own to the bit, without its compiler."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sbi_jeffreys.optim.adam import Adam

_NO_COMPILER = """
import sys
import torch
from sbi.utils import BoxUniform
from sbi_jeffreys import JeffreysNPE

prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((60,))
trainer = JeffreysNPE(prior, show_progress_bars=False)
trainer.append_simulations(theta, theta + 0.1 * torch.randn(60, 2)).train(max_num_epochs=40)
assert trainer.summary["epochs_trained"] == [40]
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_takes_the_steps_of_torchs_adam_to_the_bit(decay):
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    twin = copy.deepcopy(network)
    mine = Adam(network.parameters(), lr=1e-2, weight_decay=decay)
    torchs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=decay, fused=True)
    for step in range(5):
        if step == 3:
            mine.lr = torchs.param_groups[0]["lr"] = 1e-3
        x = torch.randn(16, 3)
        for model, optimizer in ((network, mine), (twin, torchs)):
            optimizer.zero_grad()
            # The second layer has no gradient at first: its own steps count from the third on.
            (model if step > 1 else model[0])(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_complex_and_double_parameters_among_others():
    dtypes = (torch.float32, torch.float64, torch.complex64)
    values = [torch.randn(4, dtype=dtype) for dtype in dtypes]
    mine, theirs = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    optimizers = Adam(mine, lr=0.1), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.0)
    for parameters, optimizer in zip((mine, theirs), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            torch.stack([p.abs().square().sum().float() for p in parameters]).sum().backward()
            optimizer.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_what_has_no_gradient_stays_and_nothing_happens_without_any():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)]
    optimizer = Adam(parameters, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameters[0], torch.ones(2))
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    assert (parameters[0] < 1).all()
    assert torch.equal(parameters[1], torch.ones(2))
    optimizer.zero_grad()
    assert parameters[0].grad is None


def test_decay_of_weights_is_decoupled():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Adam([parameter], lr=0.1, weight_decay=0.2).step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 1 - 0.1 * 0.2))


def test_a_training_does_not_import_torchs_compiler(tmp_path):
    # Recorded steps included: they begin before the fortieth.
    done = subprocess.run(
        [sys.executable, "-c", _NO_COMPILER], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
