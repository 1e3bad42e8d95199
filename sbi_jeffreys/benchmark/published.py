"""Reference posterior samples as published with sbibm, fetched once and kept in a cache.

Observations and true parameters come with this package; the 10,000 samples of each of the 80
posteriors do not (18 MB). :func:`fetch` takes them out of sbibm's wheel without installing or
importing it: its dependencies cannot stand next to a recent sbi. Only files whose wheel has the
expected SHA-256 enter the cache, all of them or none.

References:
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021),
    https://arxiv.org/abs/2101.04653
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..tasks import NUM_OBSERVATIONS, get_task

__all__ = [
    "CACHE_VARIABLE",
    "NUM_PUBLISHED",
    "cache_folder",
    "fetch",
    "has_published_reference",
    "published_reference_posterior",
]

CACHE_VARIABLE = "SBI_JEFFREYS_CACHE"
NUM_PUBLISHED = 10_000
VERSION = "1.1.0"
SHA256 = "12ecc6b4d327b92f9225f08faa6405e4274fb8e75943d86a53157d1b1bcfaf74"

# Tasks that sbibm publishes under another one's folder: same posterior, other form of the data.
FOLDERS = {"bernoulli_glm_raw": "bernoulli_glm", "slcp_distractors": "slcp"}
PUBLISHED = (
    "bernoulli_glm",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "lotka_volterra",
    "sir",
    "slcp",
    "two_moons",
)
SAMPLES = "reference_posterior_samples.csv.bz2"
FILES = (SAMPLES, "observation.csv", "true_parameters.csv")
EXTRA_FILES = {"bernoulli_glm": "observation_raw.csv", "slcp": "observation_distractors.csv"}


def cache_folder(cache: Path | None = None) -> Path:
    """Return the folder of the cache; it need not exist.

    Args:
        cache: Folder; ``None`` takes the environment variable SBI_JEFFREYS_CACHE, else
            sbi_jeffreys in XDG_CACHE_HOME, else ~/.cache/sbi_jeffreys.
    """
    if cache is not None:
        return Path(cache)
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sbi_jeffreys"


def has_published_reference(task_name: str) -> bool:
    """Say whether sbibm publishes reference samples of a task."""
    return FOLDERS.get(task_name, task_name) in PUBLISHED


def fetch(*, cache: Path | None = None, wheel: Path | None = None) -> Path:
    """Put sbibm's data files into the cache; nothing is done if they are there.

    Args:
        cache: Folder of the cache, see :func:`cache_folder`.
        wheel: sbibm's wheel, for machines without a network; ``None`` downloads it with pip.

    Returns:
        Folder of the files.

    Raises:
        ValueError: If the wheel is not the expected one, with both hashes.
        OSError: If it can be neither found nor downloaded, or the cache cannot be written to.
    """
    target = _data_folder(cache)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Next to its destination: only within one file system is the renaming atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as temporary:
        source = Path(wheel) if wheel is not None else _download(Path(temporary), target.parent)
        _check_hash(source)
        unpacked = Path(temporary) / "unpacked"
        _extract(source, unpacked)
        try:
            unpacked.rename(target)
        except OSError:
            # Another process was faster; the same files are there.
            if not target.is_dir():
                raise
    return target


def published_reference_posterior(
    task_name: str, observation: int, *, cache: Path | None = None
) -> Tensor:
    """Return the published samples of a reference posterior.

    Args:
        task_name: Name of a task that sbibm has.
        observation: Number of the observation, from 1 to 10.
        cache: Folder of the cache, see :func:`cache_folder`.

    Returns:
        Samples, shape (10_000, d), in the task's parameters.

    Raises:
        ValueError: If the task or the observation is unknown.
        FileNotFoundError: If the files were not fetched.
    """
    task = get_task(task_name)
    if not has_published_reference(task_name):
        raise ValueError(
            f"sbibm publishes no reference samples of {task_name!r}; choose one of "
            f"{', '.join(sorted({*PUBLISHED, *FOLDERS}))}, or the task's own samples."
        )
    if observation not in range(1, NUM_OBSERVATIONS + 1):
        raise ValueError(f"observations are numbered 1 to {NUM_OBSERVATIONS}, got {observation!r}")
    folder = _data_folder(cache)
    path = folder / _member(FOLDERS.get(task_name, task_name), observation, SAMPLES)
    if not path.is_file():
        raise FileNotFoundError(
            f"No published samples of {task_name} in {folder.parent}. Fetch them with "
            f"`sbi-jeffreys data fetch`, without a network `sbi-jeffreys data fetch --wheel FILE` "
            f"with sbibm's wheel {VERSION}; where they are elsewhere, set {CACHE_VARIABLE}."
        )
    remedy = f"remove {folder} and fetch again"
    try:
        samples = torch.from_numpy(pd.read_csv(path).to_numpy()).float()
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}.") from None
    if samples.shape != (NUM_PUBLISHED, task.dim_theta):
        raise ValueError(
            f"{path} has {len(samples)} rows of {samples.shape[1]} columns, not {NUM_PUBLISHED} of "
            f"{task.dim_theta}: {remedy}."
        )
    return samples


def _data_folder(cache: Path | None) -> Path:
    return cache_folder(cache) / f"sbibm-{VERSION}"


def _member(folder: str, observation: int, name: str) -> str:
    return f"{folder}/num_observation_{observation}/{name}"


def _download(folder: Path, cache: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"sbibm=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise OSError(
            f"sbibm {VERSION} is not in the cache {cache} and could not be downloaded: {reason}\n"
            f"On a machine with a network run `python -m pip download --no-deps sbibm=={VERSION}`; "
            "then, here, `sbi-jeffreys data fetch --wheel FILE`."
        )
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{wheel} is not the wheel of sbibm {VERSION}: its SHA-256 is {digest}, expected is "
            f"{SHA256}. Nothing was taken from it; download it again."
        )


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for task in PUBLISHED:
            for i in range(1, NUM_OBSERVATIONS + 1):
                for name in (*FILES, *([EXTRA_FILES[task]] if task in EXTRA_FILES else [])):
                    # Names are ours, not the archive's: nothing is written outside of the folder.
                    path = folder / _member(task, i, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    member = "sbibm/tasks/" + _member(f"{task}/files", i, name)
                    with archive.open(member) as source, path.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
