"""The comparison of variants: every variant can be built, runs are completed and not repeated."""

import math
import warnings
from functools import partial

import pandas as pd
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.bench_method import _simulations, differences, main
from sbi_jeffreys.benchmark.variants import VARIANTS
from sbi_jeffreys.simulators import SIMULATORS
from sbi_jeffreys.training.steps import Settings


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_are_trainers_with_arguments(name):
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    trainer_class, arguments, train = VARIANTS[name](prior)
    own = {"settings", "members", "times"}
    Settings(**arguments.get("settings", {}))
    arguments = {key: value for key, value in arguments.items() if key not in own}
    theta = prior.sample((60,))
    trainer = trainer_class(prior, show_progress_bars=False, **arguments)
    # Enough columns for an embedding of convolutions.
    trainer.append_simulations(theta, (theta @ torch.randn(2, 16)).exp())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum number of epochs", UserWarning)
        warnings.filterwarnings("ignore", "learning_rate=.* is too high", RuntimeWarning)
        trainer.train(**train | {"max_num_epochs": 1})


def test_a_run_is_completed_and_not_repeated(tmp_path, capsys):
    path = tmp_path / "out.csv"
    common = ["--tasks", "two_moons", "--seeds", "0", "--num-simulations", "60"]
    common += ["--num-test", "50", "--jobs", "1", "--out", str(path), "--variants"]
    main([*common, "ml, our flow"])
    first = pd.read_csv(path)
    main([*common, "ml, our flow", "ml, five members", "ml, weight decay 0.1"])
    rows = pd.read_csv(path)
    assert rows.iloc[:1].equals(first)
    assert list(rows.variant) == ["ml, our flow", "ml, five members", "ml, weight decay 0.1"]
    assert rows.nll.map(math.isfinite).all()
    # Different models: an ensemble of five differs from its first member.
    assert rows.nll.nunique() == 3
    assert "five members" in capsys.readouterr().out
    # Of other sizes it is another run.
    common[common.index("60")] = "70"
    main([*common, "ml, our flow"])
    assert pd.read_csv(path).num_simulations.tolist() == [60, 60, 60, 70]
    assert "five members" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "slcp", "foo"], "unknown tasks ['foo'], known are"),
        (["--variants", "bar"], "unknown variants ['bar'], known are 'sbi NPE (maf)'"),
        (["--baseline", "foo"], "unknown baselines ['foo'], known are"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_file_of_an_earlier_version_is_left_alone(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("task,seed,variant,nll\n")
    with pytest.raises(SystemExit, match=r"num_simulations.*Choose another --out"):
        main(["--out", str(path)])
    assert path.read_text() == "task,seed,variant,nll\n"


def _with(variant, train, prior):
    return *variant(prior)[:2], train


def test_noise_beside_x_is_left_out_unless_all_columns_are_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    for name in ("jeffreys", "jeffreys, all columns of x"):
        short = partial(_with, VARIANTS[name], {"max_num_epochs": 1})
        monkeypatch.setitem(VARIANTS, name, short)
    common = [
        "--tasks",
        "two_moons",
        "--seeds",
        "0",
        "--num-simulations",
        "200",
        "--num-test",
        "50",
    ]
    common += ["--jobs", "1", "--out", str(path), "--variants"]
    main([*common, "jeffreys", "jeffreys, all columns of x"])
    main([*common, "jeffreys", "jeffreys, all columns of x", "--noise", "5"])
    rows = pd.read_csv(path)
    assert rows.noise.tolist() == [0, 0, 5, 5]
    assert rows.nll[0] == rows.nll[1]
    assert rows.nll[2] != rows.nll[3]


def test_noise_has_nothing_to_do_with_theta():
    # Normal parameters, drawn from a generator of the same seed as the noise is.
    theta, x = _simulations(SIMULATORS["hierarchy"], 1000, 3, 7)
    both = torch.cat((theta, x[:, -3:]), dim=1).T.corrcoef()[: theta.shape[1], -3:]
    # Three and a half standard errors of a correlation of nothing.
    assert both.abs().max() < 3.5 / 1000**0.5


def test_the_flow_alone_is_compared_beside_the_pool(tmp_path, monkeypatch, capsys):
    short = {"max_num_epochs": 1}
    monkeypatch.setitem(VARIANTS, "jeffreys", lambda prior: (JeffreysNPE, {}, short))
    common = ["--tasks", "two_moons", "--seeds", "0", "--num-simulations", "60", "--num-test", "50"]
    main([*common, "--jobs", "1", "--out", str(tmp_path / "out.csv"), "--variants", "jeffreys"])
    assert "jeffreys, the flow alone" in capsys.readouterr().out


def test_differences_are_paired_by_task_and_seed():
    runs = [("a", 0, 1.0, 2.0), ("a", 1, 3.0, 4.0), ("b", 0, -1.0, -1.5), ("b", 1, 0.0, -0.5)]
    rows = [
        {"task": task, "seed": seed, "variant": variant, "nll": nll, "seconds": seconds}
        for task, seed, *nlls in runs
        for variant, nll, seconds in zip(("ours", "theirs"), nlls, (2.0, 1.0), strict=True)
    ]
    table = differences(pd.DataFrame(rows), "ours")
    assert list(table.index) == ["theirs"]
    row = table.loc["theirs"]
    # One nat worse on one task, half a nat better on the other.
    assert row.difference == pytest.approx(0.25)
    # Two tasks tell next to nothing, and the interval says so.
    assert row.low < -0.5
    assert row.high > 1.0
    assert (row.worst, row["where"]) == (pytest.approx(1.0), "a")
    assert row["seconds, ratio"] == pytest.approx(0.5)


def test_what_a_run_says_of_its_stability(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    common = ["--tasks", "two_moons", "--seeds", "0", "--num-simulations", "60", "--num-test", "50"]
    short = {"max_num_epochs": 2}
    monkeypatch.setitem(VARIANTS, "long", lambda prior: (JeffreysNPE, {"times": 3}, short))
    monkeypatch.setitem(VARIANTS, "ml", lambda prior: (JeffreysNPE, {"objective": "ml"}, short))
    main([*common, "--jobs", "1", "--out", str(path), "--variants", "long", "ml"])
    rows = pd.read_csv(path).set_index("variant").loc[["long", "ml"]]
    assert rows.epochs.tolist() == [6, 2]
    assert (rows.last_above_best >= 0).all()
    # Without a proxy there is no partition function.
    of_proxy = rows[["log_z_mean", "log_z_std", "nll_flow"]]
    assert of_proxy.isna().all(axis=1).tolist() == [False, True]
    # What the pool is worth can be told from the flow alone.
    assert math.isfinite(rows.nll_flow["long"])
    assert rows.weight["ml"] == 0.0
