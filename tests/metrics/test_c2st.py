"""C2ST against closed forms and against scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from sbi_jeffreys.metrics import c2st
from sbi_jeffreys.metrics.bench import main as bench
from sbi_jeffreys.metrics.stacked_mlp import fit_stacked_mlp, stacked_logits


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(n, d, shift=0.0, seed=0):
    samples = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    samples[:, 0] += shift
    return samples


def sequential(samples, reference, seed=1):
    """sbibm's definition, one scikit-learn classifier after the other."""
    mean, std = samples.mean(dim=0), samples.std(dim=0)
    data = np.concatenate([((s - mean) / std).numpy() for s in (samples, reference)])
    labels = np.repeat([0.0, 1.0], [len(samples), len(reference)])
    width = 10 * samples.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return cross_val_score(network, data, labels, cv=folds, scoring="accuracy").mean()


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_mlp_agrees_with_scikit_learn(shift):
    # Same initial weights, batches and stopping rule. Rounding differs and grows in training until
    # single labels near the boundary change: 0.01 is 20 of 2,000 labels.
    p, q = normal(1000, 2), normal(1000, 2, shift, seed=1)
    assert c2st(p, q) == pytest.approx(sequential(p, q), abs=0.01)


@pytest.mark.parametrize("n", [600, 650])
def test_stacked_network_takes_the_steps_of_scikit_learn(n):
    # n = 650: the last batch of an epoch is a smaller one.
    x = normal(n, 3)
    y = (x[:, 0] * x[:, 1] > 0).float()
    train = torch.stack([torch.arange(n), torch.arange(n).flip(0)])
    fit = fit_stacked_mlp(x, y, train, hidden=30, seed=3, max_epochs=4)
    for k, rows in enumerate(train):
        network = MLPClassifier((30, 30), max_iter=4, random_state=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(x[rows].numpy(), y[rows].numpy())
        np.testing.assert_allclose(fit.losses[k], network.loss_curve_, atol=1e-5)
        np.testing.assert_allclose(fit.layers.w2[k].T, network.coefs_[1], atol=1e-5)
        np.testing.assert_allclose(fit.layers.b1[k, :, 0], network.intercepts_[0], atol=1e-5)
        probability = torch.sigmoid(stacked_logits(fit, x.expand(2, -1, -1))[k])
        np.testing.assert_allclose(probability, network.predict_proba(x.numpy())[:, 1], atol=1e-4)


def test_networks_stop_one_by_one_at_the_rule():
    n, tol, patience = 400, 1e-3, 5
    x = normal(n, 2)
    y = (x.sum(dim=1) > 0).float()
    train = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s))[:300]
                         for s in range(3)])  # fmt: skip
    fit = fit_stacked_mlp(x, y, train, hidden=10, tol=tol, patience=patience)
    assert len({len(losses) for losses in fit.losses}) > 1
    for k, losses in enumerate(fit.losses):
        best, stale = math.inf, 0
        for epoch, loss in enumerate(losses, start=1):
            stale = stale + 1 if loss > best - tol else 0
            best = min(best, loss)
            assert (stale > patience) == (epoch == len(losses))
        # Alone it takes the same steps: those that stop leave no trace in the others.
        alone = fit_stacked_mlp(x, y, train[k : k + 1], hidden=10, tol=tol, patience=patience)
        assert len(alone.losses[0]) == len(losses)
        torch.testing.assert_close(alone.layers.w3[0], fit.layers.w3[k], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("classifier", "slack"), [("mlp", 0.02), ("rf", 0.06)])
def test_accuracy_is_that_of_the_best_classifier(classifier, slack):
    shift, n = 2.0, 1500
    best = norm.cdf(shift / 2)
    error = 3 * math.sqrt(best * (1 - best) / (2 * n))
    value = c2st(normal(n, 2), normal(n, 2, shift, seed=1), classifier=classifier)
    assert best - error - slack < value < best + error


@pytest.mark.parametrize("classifier", ["mlp", "rf"])
def test_equal_distributions_reach_one_half(classifier):
    value = c2st(normal(1000, 2), normal(1000, 2, seed=1), classifier=classifier)
    assert value == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(2000))


@pytest.mark.parametrize("classifier", ["mlp", "rf"])
def test_seed_decides_the_value_and_global_state_is_left_alone(classifier):
    p, q = normal(103, 1), normal(100, 1, 1.0, seed=1)  # folds of unequal size
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = c2st(p, q, classifier=classifier)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert c2st(p, q, classifier=classifier) == first
    assert c2st(p, q, classifier=classifier, seed=2) != first


def test_scale_matters_only_without_standardisation():
    p, q = normal(100, 2), normal(100, 2, 2.0, seed=1)
    scale = torch.tensor([64.0, 0.125])  # powers of two round alike
    assert c2st(p * scale, q * scale) == c2st(p, q)
    assert c2st(p * scale, q * scale, z_score=False) != c2st(p, q, z_score=False)


def test_constant_coordinate():
    p, q = torch.zeros(100, 1), torch.ones(100, 1)
    assert c2st(p, q) == 1.0


@pytest.mark.parametrize("unit", [1e-20, 1e15])
def test_units_do_not_matter(unit):
    samples, reference = unit * torch.randn(200, 2), unit * (torch.randn(200, 2) + 10)
    assert c2st(samples, reference) == 1.0


def test_narrow_distributions_far_from_zero():
    p = 1e6 + 1e-3 * normal(100, 1).double()
    assert c2st(p, p + 0.1) == 1.0


def test_loss_that_is_not_finite():
    x = torch.full((10, 1), math.nan)
    with pytest.raises(ValueError, match="loss is not finite"):
        fit_stacked_mlp(x, torch.ones(10), torch.arange(10).unsqueeze(0), hidden=10)


def test_bench_prints_a_row_for_each_case(capsys):
    bench(["--samples", "100", "--dimensions", "2", "--cases", "far"])
    out = capsys.readouterr().out
    assert "| far | 2 | 1 |" in out
    assert "mean difference" in out


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.rand(9, 2), torch.rand(9, 3)), {}, "samples have dimension 2, reference has 3"),
        ((torch.rand(4, 2), torch.rand(9, 2)), {}, "samples has 4 rows, but at least 5"),
        ((torch.rand(9, 2), torch.rand(4, 2)), {}, "reference has 4 rows, but at least 5"),
        ((torch.rand(9), torch.rand(9, 2)), {}, r"samples must have shape \(n, d\)"),
        ((torch.full((9, 2), math.nan), torch.rand(9, 2)), {}, "samples has 9 rows with NaN"),
        ((torch.rand(9, 2), torch.full((9, 2), math.inf)), {}, "reference has 9 rows with NaN"),
        ((torch.rand(9, 2), torch.rand(9, 2)), {"folds": 1}, "folds is 1"),
        ((torch.rand(9, 2), torch.rand(9, 2)), {"classifier": "svm"}, "classifier is 'svm'"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        c2st(*arguments, **options)


def test_arrays_are_no_tensors():
    with pytest.raises(TypeError, match=r"reference must be a tensor.*torch.as_tensor"):
        c2st(torch.rand(9, 2), np.zeros((9, 2)))
