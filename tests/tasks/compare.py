"""Compares reference posteriors with the samples that sbibm publishes.

    python tests/tasks/compare.py SBIBM_TASKS [TASK ...]

SBIBM_TASKS is the folder ``sbibm/tasks`` of an unpacked sbibm 1.1.0 wheel; the published samples
are not part of this repository. For every observation a line gives three comparisons of our draws
with the published ones: the cross-validated accuracy of a classifier (0.5: indistinguishable; its
standard deviation under equality is 0.5 / √6000 = 0.0065 for fixed classifiers), the largest
absolute z-score of the means of θ_j and of θ_j², and the smallest Kolmogorov-Smirnov p-value times
the number of parameters.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sbi_jeffreys.tasks import get_task, list_tasks
from scipy.stats import ks_2samp
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

FOLDERS = {"bernoulli_glm_raw": "bernoulli_glm", "slcp_distractors": "slcp"}
SEED = 0


class Comparison(NamedTuple):
    """How two samples differ."""

    c2st: float
    z_max: float
    ks_p: float


def compare(a: np.ndarray, b: np.ndarray, size: int = 3_000) -> Comparison:
    """Compares two samples of shape ``(n, d)``; the classifier sees ``size`` rows of each."""
    scale = np.concatenate((a, b)).std(axis=0)
    a, b = (a - b.mean(axis=0)) / scale, (b - b.mean(axis=0)) / scale
    z = [
        (u.mean(axis=0) - v.mean(axis=0)) / np.sqrt(u.var(0) / len(u) + v.var(0) / len(v))
        for u, v in ((a, b), (a**2, b**2))
    ]
    p = min(ks_2samp(u, v, method="asymp").pvalue for u, v in zip(a.T, b.T, strict=True))
    rows = np.concatenate((a[:size], b[:size]))
    label = np.repeat((0, 1), size)
    width = 10 * a.shape[1]
    mlp = MLPClassifier((width, width), early_stopping=True, n_iter_no_change=20, random_state=SEED)
    order = np.random.default_rng(SEED).permutation(len(rows))
    scores = cross_val_score(mlp, rows[order], label[order], cv=5, scoring="accuracy")
    return Comparison(float(scores.mean()), float(np.abs(z).max()), min(1.0, p * a.shape[1]))


def compare_published(name: str, i: int, root: Path) -> Comparison:
    """Compares our 10,000 draws for a task's observation i with the published ones."""
    folder = root / FOLDERS.get(name, name) / "files" / f"num_observation_{i}"
    published = pd.read_csv(folder / "reference_posterior_samples.csv.bz2").to_numpy()
    published = np.random.default_rng(SEED).permutation(published)
    generator = torch.Generator().manual_seed(SEED)
    ours = get_task(name).reference_posterior(i, generator=generator).double().numpy()
    return compare(ours, published)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:] or list_tasks():
        for i in range(1, 11):
            c = compare_published(name, i, Path(sys.argv[1]))
            line = f"{name} {i} c2st {c.c2st:.3f} z_max {c.z_max:.2f} ks_p {c.ks_p:.3f}\n"
            sys.stdout.write(line)
            sys.stdout.flush()
