"""Means and paired differences against sums done by hand, intervals against their level."""

import numpy as np
import pandas as pd
import pytest

from sbi_jeffreys.benchmark.report.compare import (
    bootstrap_interval,
    paired_differences,
    scores,
    summary,
)
from sbi_jeffreys.benchmark.report.load import COLUMNS


def table(*rows):
    return pd.DataFrame([["slcp", method, 100, *rest] for method, *rest in rows], columns=COLUMNS)


def test_observations_are_averaged_before_seeds():
    values = table(
        ("npe", 0, "1", "c2st", 0.6),
        ("npe", 0, "2", "c2st", 0.8),
        ("npe", 1, "1", "c2st", 0.9),
    )
    assert scores(values, "c2st")["value"].tolist() == pytest.approx([0.7, 0.9])
    row = summary(values, "c2st").loc[("slcp", 100, "npe")]
    assert row["mean"] == pytest.approx(0.8)
    assert row["standard_error"] == pytest.approx(0.1)
    assert row["num_values"] == 3


def test_one_seed_has_no_standard_error():
    values = table(("npe", 0, "all", "nll", 1.0))
    assert np.isnan(summary(values, "nll")["standard_error"].item())


def test_a_metric_of_observations_is_not_mixed_with_its_mean():
    values = table(("npe", 0, "all", "c2st", 0.1), ("npe", 0, "1", "c2st", 0.6))
    assert scores(values, "c2st")["value"].tolist() == [0.6]


def test_only_pairs_count():
    values = table(
        ("npe", 0, "1", "c2st", 0.6),
        ("npe", 0, "2", "c2st", 0.9),
        ("npe", 1, "1", "c2st", 0.7),
        ("ml", 0, "1", "c2st", 0.5),
        ("ml", 0, "2", "c2st", 0.8),
        ("ml", 2, "1", "c2st", 0.1),
    )
    row = paired_differences(values, "c2st", "npe").loc[("slcp", 100, "ml")]
    assert row["difference"] == pytest.approx(-0.1)
    assert (row["num_seeds"], row["num_pairs"]) == (1, 2)
    assert row["verdict"] == "better"


@pytest.mark.parametrize("metric", ["c2st", "nll"])
def test_nothing_to_compare_is_an_empty_table(metric):
    values = table(("npe", 0, "1", "c2st", 0.6))
    found = paired_differences(values, metric, "npe")
    assert found.empty
    assert list(found.index.names) == ["task", "num_simulations", "method"]


@pytest.mark.parametrize(("shift", "verdict"), [(-1.0, "better"), (0.0, "tie"), (1.0, "worse")])
def test_verdict(shift, verdict):
    noise = np.array([-0.1, 0.05, 0.1, -0.05])
    assert bootstrap_interval([noise + shift] * 3).verdict == verdict


def test_one_pair_has_no_interval():
    interval = bootstrap_interval([np.array([0.3])])
    assert interval.mean == 0.3
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.verdict == ""


def test_equal_input_gives_equal_intervals():
    deltas = list(np.random.default_rng(1).normal(size=(4, 6)))
    assert bootstrap_interval(deltas) == bootstrap_interval(deltas)


@pytest.mark.parametrize("by_seed", [[], [np.array([1.0]), np.array([])]])
def test_seeds_without_differences_are_refused(by_seed):
    with pytest.raises(ValueError, match="Every seed needs differences"):
        bootstrap_interval(by_seed)


def test_seeds_may_differ_in_observations():
    # Seed means 1 and 3: each seed counts once, however many observations it has.
    interval = bootstrap_interval([np.full(5, 1.0), np.array([3.0])])
    assert interval.mean == 2.0
    # A mean of two draws of 1 or 3 has standard deviation 1 / sqrt(2); n = 2, t = 12.706.
    # 2,000 draws know a standard deviation to 1.6 %; four times that.
    assert interval.high - 2.0 == pytest.approx(12.706 * 2**0.5 * 0.5**0.5, rel=0.065)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    # Between seeds sd 1, within sd 0.3: what differs is the training.
    rng = np.random.default_rng(seeds)
    trials = 300
    covered = 0
    for _ in range(trials):
        deltas = 0.5 + rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=(seeds, 5))
        interval = bootstrap_interval(list(deltas), num_resamples=400)
        covered += interval.low <= 0.5 <= interval.high
    # Binomial sd at 95 % of 300 trials: 1.3 %; three of them below. Percentile intervals of the
    # same draws cover 58 to 85 %.
    assert covered / trials >= 0.95 - 3 * 0.0126
