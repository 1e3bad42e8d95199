# ruff: noqa: T201
r"""Speed and agreement of `c2st(..., classifier="mlp")` with scikit-learn's sequential version.

Run as `python -m sbi_jeffreys.metrics.bench [--samples 10000] [--seeds 1]`. Every case is timed
with both implementations in turn, on one thread, in seconds of processor time, so that other work
on the machine disturbs little. The cases are two sets of equal size in d = 2, 5 and 10 dimensions:

- equal: both standard normal; accuracy 1/2.
- shift: the mean of the second differs by 1/2 in one coordinate; best accuracy 0.599.
- modes: four modes at (+-1.5, +-1.5) in the first two coordinates, against one normal distribution
  with the same moments: nothing that is linear in the parameters tells them apart.
- far: means differ by 3 in one coordinate; best accuracy 0.933.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from .c2st import c2st

__all__ = ["CASES", "main", "sequential_c2st"]


def _normal(n: int, d: int, generator: torch.Generator, shift: float = 0.0) -> Tensor:
    samples = torch.randn(n, d, generator=generator)
    samples[:, 0] += shift
    return samples


def _equal(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _normal(n, d, generator), _normal(n, d, generator)


def _shift(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _normal(n, d, generator), _normal(n, d, generator, shift=0.5)


def _modes(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    modes, one = _normal(n, d, generator), _normal(n, d, generator)
    modes[:, :2] += 3.0 * torch.randint(2, (n, 2), generator=generator) - 1.5
    one[:, :2] *= (1 + 1.5**2) ** 0.5
    return modes, one


def _far(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _normal(n, d, generator), _normal(n, d, generator, shift=3.0)


CASES: dict[str, Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "equal": _equal,
    "shift": _shift,
    "modes": _modes,
    "far": _far,
}


def sequential_c2st(samples: Tensor, reference: Tensor, *, seed: int = 1) -> float:
    r"""Compute C2ST as sbibm does, one scikit-learn classifier after the other.

    Args:
        samples: First set, shape :math:`(n, d)`.
        reference: Second set, shape :math:`(m, d)`.
        seed: Seed of folds and classifiers.

    Returns:
        Accuracy, in [0, 1].
    """
    mean, std = samples.mean(dim=0), samples.std(dim=0)
    data = torch.cat([(samples - mean) / std, (reference - mean) / std]).numpy()
    labels = np.repeat([0.0, 1.0], [len(samples), len(reference)])
    width = 10 * data.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(network, data, labels, cv=folds, scoring="accuracy").mean())


def _timed(metric: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = metric()
    return value, time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Time both implementations on every case and print a table."""
    parser = argparse.ArgumentParser(description="C2ST: stacked network against scikit-learn")
    parser.add_argument("--samples", type=int, default=10_000, help="samples in each set")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1..SEEDS of data and metric")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--cases", choices=list(CASES), nargs="+", default=list(CASES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    print(f"2 x {args.samples} samples, 5 folds, one thread, seconds of processor time")
    print("| case | d | seed | scikit-learn | stacked | ratio | scikit-learn, s | stacked, s |")
    print("|---|---|---|---|---|---|---|---|")
    differences, ratios = [], []
    with threadpool_limits(1):
        c2st(*_equal(100, 2, torch.Generator().manual_seed(0)))  # first calls are slower
        runs = [(d, case, s) for d in args.dimensions for case in args.cases for s in _up(args)]
        for d, case, seed in runs:
            p, q = CASES[case](args.samples, d, torch.Generator().manual_seed(seed))
            theirs, slow = _timed(partial(sequential_c2st, p, q, seed=seed))
            ours, fast = _timed(partial(c2st, p, q, seed=seed))
            differences.append(ours - theirs)
            ratios.append(slow / fast)
            print(
                f"| {case} | {d} | {seed} | {theirs:.4f} | {ours:.4f} | {slow / fast:.1f} "
                f"| {slow:.1f} | {fast:.1f} |",
                flush=True,
            )
    absolute = [abs(difference) for difference in differences]
    print(
        f"mean difference {statistics.mean(differences):+.4f}, mean absolute difference "
        f"{statistics.mean(absolute):.4f}, largest {max(absolute):.4f}; "
        f"ratio: median {statistics.median(ratios):.1f}, least {min(ratios):.1f}"
    )


def _up(args: argparse.Namespace) -> range:
    return range(1, args.seeds + 1)


if __name__ == "__main__":
    main()
