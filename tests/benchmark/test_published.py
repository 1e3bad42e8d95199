"""Published samples come from the right wheel or not at all, and need no network afterwards."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from sbi_jeffreys.tasks import get_task

from sbi_jeffreys.benchmark import published
from sbi_jeffreys.benchmark.published import fetch, published_reference_posterior

ROWS = 3


def value(task, observation):
    return float(100 * published.PUBLISHED.index(task) + observation)


def build_wheel(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sbibm/__init__.py", "raise RuntimeError('must not be imported')")
        for task in published.PUBLISHED:
            d = get_task(task).dim_theta
            for i in range(1, 11):
                folder = f"sbibm/tasks/{task}/files/num_observation_{i}"
                frame = pd.DataFrame([[value(task, i)] * d] * ROWS)
                packed = io.BytesIO()
                frame.to_csv(packed, index=False, compression="bz2")
                archive.writestr(f"{folder}/{published.SAMPLES}", packed.getvalue())
                extra = published.EXTRA_FILES.get(task)
                for name in ("observation.csv", "true_parameters.csv", *([extra] if extra else [])):
                    archive.writestr(f"{folder}/{name}", "a,b\n1,2\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "sbibm-1.1.0-py2.py3-none-any.whl"
    build_wheel(path)
    return path


@pytest.fixture
def wheel(built, monkeypatch):
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(built.read_bytes()).hexdigest())
    monkeypatch.setattr(published, "NUM_PUBLISHED", ROWS)
    return built


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(published.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: a function of the folder that a wheel should go to."""
    calls = []

    def install(behaviour):
        def run(command, **kwargs):
            calls.append(command)
            return behaviour(Path(command[command.index("--dest") + 1]))

        monkeypatch.setattr(published.subprocess, "run", run)
        return calls

    return install


def test_fetches_with_pip_once(wheel, cache, pip):
    def download(folder):
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess([], 0, "", "")

    calls = pip(download)
    assert fetch() == fetch() == cache / "sbibm-1.1.0"
    assert len(calls) == 1
    assert "sbibm==1.1.0" in calls[0]
    assert [path.name for path in cache.iterdir()] == ["sbibm-1.1.0"]


@pytest.mark.parametrize("task", ["two_moons", "slcp", "slcp_distractors", "bernoulli_glm_raw"])
def test_samples_are_those_of_task_and_observation(task, wheel, cache):
    fetch(wheel=wheel)
    samples = published_reference_posterior(task, 10)
    source = published.FOLDERS.get(task, task)
    assert torch.equal(samples, torch.full((ROWS, get_task(task).dim_theta), value(source, 10)))


@pytest.mark.parametrize("damage", ["cut off", "a row too few"])
def test_damaged_samples_are_refused(damage, wheel, cache):
    folder = fetch(wheel=wheel)
    path = folder / "slcp" / "num_observation_2" / published.SAMPLES
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        pd.read_csv(path).iloc[1:].to_csv(path, index=False, compression="bz2")
    with pytest.raises(ValueError, match="fetch again"):
        published_reference_posterior("slcp", 2)
    published_reference_posterior("slcp", 3)


def test_cache_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv(published.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert published.cache_folder() == tmp_path / "sbi_jeffreys"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert published.cache_folder() == tmp_path / ".cache" / "sbi_jeffreys"


def test_another_wheel_is_refused_with_both_hashes(built, cache):
    with pytest.raises(ValueError, match="Nothing was taken") as error:
        fetch(wheel=built)
    assert published.SHA256 in str(error.value)
    assert hashlib.sha256(built.read_bytes()).hexdigest() in str(error.value)
    assert list(cache.iterdir()) == []


def test_interrupted_extraction_leaves_no_cache(wheel, cache, monkeypatch):
    def interrupted(source, copy):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(published.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(wheel=wheel)
    assert list(cache.iterdir()) == []
    fetch(wheel=wheel)
    assert len(published_reference_posterior("slcp", 1)) == ROWS


def test_neither_cache_nor_network_says_what_to_do(cache, pip):
    pip(lambda folder: subprocess.CompletedProcess([], 1, "", "first\nno route to the index"))
    with pytest.raises(OSError, match="no route to the index") as error:
        fetch()
    assert "data fetch --wheel FILE" in str(error.value)
    with pytest.raises(FileNotFoundError, match="sbi-jeffreys data fetch") as missing:
        published_reference_posterior("two_moons", 1)
    assert str(cache) in str(missing.value)
    assert "--wheel" in str(missing.value)


@pytest.mark.parametrize(("task", "observation"), [("two_suns", 1), ("slcp", 0), ("slcp", 11)])
def test_unknown_task_or_observation(task, observation, cache):
    with pytest.raises(ValueError, match=r"known are|numbered 1 to 10"):
        published_reference_posterior(task, observation)


@pytest.mark.slow
def test_real_wheel(cache):
    fetch()
    for task in ("two_moons", "slcp_distractors"):
        samples = published_reference_posterior(task, 1)
        assert samples.shape == (10_000, get_task(task).dim_theta)
        assert torch.isfinite(get_task(task).prior.log_prob(samples)).all()
