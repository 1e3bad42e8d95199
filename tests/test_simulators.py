"""Simulators beside the ten tasks: shapes, seeds, and that parameters are what data tell of."""

import pandas as pd
import pytest
import torch

from sbi_jeffreys import bench_method
from sbi_jeffreys.bench_method import main
from sbi_jeffreys.simulators import SIMULATORS


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulations_are_finite_inside_of_the_prior_and_fixed_by_the_seed(name):
    simulator = SIMULATORS[name]
    state = torch.get_rng_state()
    theta, x = simulator.simulate(200, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(theta) == len(x) == 200
    assert theta.dtype == x.dtype == torch.float32
    assert x.isfinite().all()
    assert simulator.prior.log_prob(theta).isfinite().all()
    again = simulator.simulate(200, generator=seeded(0))
    assert torch.equal(again[0], theta)
    assert torch.equal(again[1], x)
    assert not torch.equal(simulator.simulate(200, generator=seeded(1))[0], theta)


@pytest.mark.parametrize("name", sorted(set(SIMULATORS) - {"uninformative"}))
def test_every_parameter_moves_some_view_of_the_data(name):
    simulator = SIMULATORS[name]
    theta, _ = simulator.simulate(1000, generator=seeded(0))
    # Below and above the median in turn: where two means are equal, nobody sees one change to the
    # other.
    typical = torch.stack([t.quantile(0.3 + 0.4 * (i % 2)) for i, t in enumerate(theta.T)])
    typical = typical.repeat(1000, 1)
    for i in range(theta.shape[1]):
        # Kolmogorov's distance: of 1,000 draws each chance exceeds 0.09 once in 1,000; of some
        # hundred views one exceeds 0.11.
        assert max(distance(simulator, typical, i, q) for q in (0.05, 0.95)) > 0.15, i


def views(x):
    """Return columns, and how pairs of few of them go together: rings have no mean. (v, n)."""
    few = x[:, :8]
    first, second = torch.triu_indices(few.shape[1], few.shape[1], 1)
    norms = few[:, first].square() + few[:, second].square()
    return torch.cat((x, norms, few[:, first] * few[:, second]), dim=1).T.contiguous()


def distance(simulator, typical, i, quantile):
    """Return how far the i-th parameter, at this quantile, moves the view it moves most."""
    moved = typical.clone()
    moved[:, i] = simulator.prior.sample((1000,))[:, i].quantile(quantile)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        here, there = (views(simulator.run(values)) for values in (typical, moved))
    both = torch.cat((here, there), dim=1)
    cdfs = [torch.searchsorted(x.sort().values, both, right=True) for x in (here, there)]
    return (cdfs[0] - cdfs[1]).abs().max().item() / 1000


def test_the_comparison_of_variants_takes_simulators(tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    arguments = ["--variants", "ml, our flow", "--seeds", "0", "--jobs", "1", "--out", str(out)]
    sizes = ["--num-simulations", "100", "--num-test", "100"]
    main(["--tasks", "wave", "two_moons", *arguments, *sizes])
    monkeypatch.setattr(bench_method, "SIMULATORS", {"bits": SIMULATORS["bits"]})
    main(["--tasks", "two_moons", "simulators", *arguments, *sizes])
    assert pd.read_csv(out).task.tolist() == ["wave", "two_moons", "bits"]
