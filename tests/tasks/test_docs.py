"""The code of docs/tasks.md does what the page says."""

import doctest
import json
import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_sessions():
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0


def test_added_task():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    names = {"__name__": "waiting_times", "__package__": "sbi_jeffreys.tasks"}
    for block in blocks:
        exec(block, names)
    task, data = names["task"], json.loads(names["text"])
    assert torch.tensor(data["observations"]).shape == (10, task.dim_x)

    # The sampler against importance sampling from the prior, as for the tasks of the package.
    generator = torch.Generator().manual_seed(0)
    theta, x = task.simulate(100_000, generator=generator)
    w = task.log_likelihood(theta, x[:1]).softmax(dim=0)
    samples = task.reference_posterior(x[0], 10_000, generator=generator)
    mean = (w * theta[:, 0]).sum()
    error = samples.std() * (1e-4 + (w**2).sum()).sqrt()
    assert (samples.mean() - mean).abs() < 4 * error
