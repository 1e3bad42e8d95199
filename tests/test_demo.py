"""The numbers and figures of the demo."""

from types import SimpleNamespace

import pytest
import torch
from sbi_jeffreys.tasks import get_task
from torch.distributions import MultivariateNormal

from sbi_jeffreys import demo
from sbi_jeffreys.duals import is_maximum_likelihood


class Exact:
    """Trainer, estimator and posterior of gaussian_linear, that of the closed form."""

    summary = {"epochs_trained": [3]}  # noqa: RUF012

    def append_simulations(self, theta, x):
        self.seen = x

    def train(self, max_num_epochs):
        return self

    def build_posterior(self):
        return self

    def at(self, x):
        return MultivariateNormal(x / 2, 0.05 * torch.eye(10))

    def log_prob(self, theta, x):
        self.judged = x
        return self.at(x).log_prob(theta)

    def sample(self, shape, x, show_progress_bars):
        return self.at(x[0]).sample(shape)


def test_an_exact_method_gets_the_values_of_theory(monkeypatch):
    exact = Exact()
    monkeypatch.setitem(demo.METHODS, "exact", lambda prior, seed: exact)
    compared = []
    monkeypatch.setattr(demo, "c2st", lambda *pair: compared.append(pair) or 0.5)
    sizes = demo.Sizes(num_test=500, observations=(2, 3), num_samples=200)
    first, again = (demo.run_method("gaussian_linear", "exact", 500, 0, sizes) for _ in range(2))
    entropy = exact.at(torch.zeros(10)).entropy().item()
    # Of a sum of ten squares: sqrt(10 / 2 / 500).
    assert first.row["nll_standard_error"] == pytest.approx(0.1, rel=0.2)
    assert abs(first.row["nll"] - entropy) < 4 * first.row["nll_standard_error"]
    assert first.row["c2st"] == 0.5
    # Means of 200 in ten dimensions, of a standard deviation of 0.22.
    assert all((a.mean(0) - b.mean(0)).abs().max() < 0.1 for a, b in compared)
    assert len(compared) == 4
    assert first.row["epochs"] == 3
    # Judged on simulations of its own, and under a seed.
    assert exact.seen.shape == exact.judged.shape
    assert not torch.equal(exact.seen, exact.judged)
    assert torch.equal(first.samples, again.samples)


def test_the_methods_are_what_they_are_called():
    prior = get_task("two_moons").prior
    objectives = {
        name: is_maximum_likelihood(demo.METHODS[name](prior, 0)._weighting)
        for name in ("max. likelihood", "JeffreysNPE")
    }
    assert objectives == {"max. likelihood": True, "JeffreysNPE": False}


def test_figures_show_the_method_they_name(monkeypatch, tmp_path):
    shown = {}
    figure = SimpleNamespace(savefig=lambda *args, **kwargs: None)
    monkeypatch.setattr(demo, "plot_posteriors", lambda s, title: shown.update(s) or figure)
    monkeypatch.setattr(demo, "plot_training", lambda s: shown.update(summary=s) or figure)
    results = {
        name: demo.Result({}, torch.full((3, 2), float(i)), {"of": [name]})
        for i, name in enumerate(demo.METHODS)
    }
    demo._save_figures(tmp_path, "two_moons", results, 0, demo.QUICK)
    assert shown["reference"].shape == (demo.QUICK.num_samples, 2)
    for name in ("sbi NPE", "JeffreysNPE"):
        assert shown[name] is results[name].samples
    assert shown["summary"] == {"of": ["JeffreysNPE"]}
