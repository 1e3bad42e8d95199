"""Reference samples are drawn once, and anew where what they come from has changed."""

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import get_task
from sbi_jeffreys.tasks.two_moons import TwoMoons

from sbi_jeffreys.benchmark.jobs import Evaluation
from sbi_jeffreys.benchmark.references import Observation, reference_samples

EVALUATION = Evaluation(observations=(1,), num_samples=50)


class Shifted(TwoMoons):
    """Another sampler of the reference posterior."""

    def _sample_reference(self, x, num_samples, rng):
        return super()._sample_reference(x, num_samples, rng) + 1.0


@pytest.fixture
def task():
    return get_task("two_moons")


def observation(x):
    return Observation(1, x, ("two_moons", "observation", 1))


def samples(folder, task, x):
    return reference_samples(task, observation(x), EVALUATION, folder)


def test_drawn_once(tmp_path, task, monkeypatch):
    x = task.observation(1)
    first = samples(tmp_path, task, x)
    assert torch.equal(samples(None, task, x), first)
    monkeypatch.setattr(task, "_sample_reference", None)
    assert torch.equal(samples(tmp_path, task, x), first)


@pytest.mark.parametrize("damage", ["cut off", "others"])
def test_damaged_samples_are_drawn_again(damage, tmp_path, task):
    x = task.observation(1)
    first = samples(tmp_path, task, x)
    (path,) = tmp_path.iterdir()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    else:
        np.save(path, first[1:].numpy())
    assert torch.equal(samples(tmp_path, task, x), first)


def test_other_data_have_other_samples(tmp_path, task):
    """A task whose simulator was corrected has others under the same number."""
    one, other = task.observation(1), task.observation(2)
    first = samples(tmp_path, task, one)
    assert torch.equal(samples(tmp_path, task, other), samples(None, task, other))
    assert torch.equal(samples(tmp_path, task, one), first)


def test_another_sampler_has_other_samples(tmp_path, task):
    x = task.observation(1)
    first = samples(tmp_path, task, x)
    shifted = samples(tmp_path, Shifted(), x)
    assert torch.equal(shifted, samples(None, Shifted(), x))
    assert not torch.equal(shifted, first)
    assert torch.equal(samples(tmp_path, task, x), first)
