r"""Classifier two-sample test (C2ST).

A classifier learns to tell samples of p (label 0) from samples of q (label 1); its accuracy on
samples that it has not seen, averaged over the folds of a cross-validation, is the metric. It is
1/2 for p = q and 1 for distributions that can be told apart without error. With equally many
samples of both, the best classifier reaches

.. math:: \frac12 + \frac12 \mathrm{TV}(p, q) = \frac12 + \frac14 \int |p(\theta) - q(\theta)|
          \,\mathrm{d}\theta

and a classifier that is trained on finitely many samples stays below on average: C2ST is a lower
bound of the distance, and depends on the classifier. Numbers are comparable only between equal
classifiers and equal numbers of samples. Two are in use:

- "mlp": the network of sbibm, 2 hidden layers of 10 d units, trained until the training loss
  stalls, with scikit-learn's random numbers. It answers as sbibm's does, several times as fast.
- "rf": the random forest of `sbi.utils.metrics.c2st`.

References:
    Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017),
    https://arxiv.org/abs/1610.06545, section 3.
    Benchmarking Simulation-Based Inference (Lueckmann et al., 2021),
    https://arxiv.org/abs/2101.04653, appendix M.
"""

from typing import Literal

import numpy as np
import sbi.utils.metrics
import torch
from sklearn.model_selection import KFold
from torch import Tensor

from ._checks import check_samples
from .stacked_mlp import fit_stacked_mlp, stacked_logits

__all__ = ["c2st"]


def c2st(
    samples: Tensor,
    reference: Tensor,
    *,
    classifier: Literal["mlp", "rf"] = "mlp",
    folds: int = 5,
    seed: int = 1,
    z_score: bool = True,
) -> float:
    r"""Compute the mean held-out accuracy of a classifier between two sets of samples.

    sbibm passes the reference posterior first and the algorithm's samples second. The order
    matters little: only standardisation depends on it.

    Args:
        samples: First set :math:`\theta \sim p`, shape :math:`(n, d)`.
        reference: Second set :math:`\theta \sim q`, shape :math:`(m, d)`. Take m = n, else 1/2 is
            no longer the value for equal distributions.
        classifier: "mlp" for sbibm's network, "rf" for sbi's random forest.
        folds: Number of folds, at least 2.
        seed: Seed of the folds and of the classifier. Global random states are left alone.
        z_score: Whether to subtract the mean and divide by the standard deviation of the first
            set, from both sets. A coordinate that is constant in the first set is not divided.

    Returns:
        Accuracy, in [0, 1].

    Raises:
        ValueError: If the sets differ in dimension, have fewer rows than `folds`, or values that
            are not finite; if the classifier is unknown or `folds` is below 2.

    Example:
        >>> samples = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
        >>> c2st(samples, samples + 10.0)
        1.0
    """
    if folds < 2:
        raise ValueError(f"folds is {folds}, but cross-validation needs at least 2.")
    check_samples(samples, reference, minimum=folds)
    samples, reference = (
        value.detach().cpu() if value.is_floating_point() else value.detach().cpu().double()
        for value in (samples, reference)
    )
    if z_score:
        mean, std = samples.mean(dim=0), samples.std(dim=0)
        std[std <= 1e-14 * samples.abs().amax(dim=0)] = 1.0
        samples, reference = (samples - mean) / std, (reference - mean) / std
    # Only now: a narrow posterior far from zero would lose its digits.
    samples, reference = samples.float(), reference.float()

    if classifier == "mlp":
        return _mlp_accuracy(samples, reference, folds=folds, seed=seed)
    if classifier == "rf":
        accuracy = sbi.utils.metrics.c2st(
            samples, reference, seed=seed, n_folds=folds, classifier="rf", z_score=False
        )
        return float(accuracy)
    raise ValueError(f"classifier is {classifier!r}; choose 'mlp' (sbibm) or 'rf' (sbi).")


def _mlp_accuracy(samples: Tensor, reference: Tensor, *, folds: int, seed: int) -> float:
    data = torch.cat([samples, reference])
    labels = torch.cat([torch.zeros(len(samples)), torch.ones(len(reference))])
    splits = list(KFold(folds, shuffle=True, random_state=seed).split(data))
    # Where folds differ in size, by one, the larger training sets leave out their last sample.
    size = min(len(train) for train, _ in splits)
    train = torch.from_numpy(np.stack([train[:size] for train, _ in splits]))
    fit = fit_stacked_mlp(data, labels, train, hidden=10 * data.shape[1], seed=seed)

    accuracies = []
    for k, (_, test) in enumerate(splits):
        one = fit._replace(layers=type(fit.layers)(*(layer[k : k + 1] for layer in fit.layers)))
        predicted = stacked_logits(one, data[test].unsqueeze(0)).squeeze(0) > 0
        accuracies.append((predicted == labels[test].bool()).double().mean())
    return float(torch.stack(accuracies).mean())
