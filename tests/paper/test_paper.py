"""Every experiment in its quick version, resuming, and the command."""

import argparse

import numpy as np
import pandas as pd
import pytest

from sbi_jeffreys import partition
from sbi_jeffreys.paper import cli, fig2, fig4, fig5
from sbi_jeffreys.paper.data import gaussian_mixture, split
from sbi_jeffreys.paper.models import best_and_last, curve, train
from sbi_jeffreys.paper.runs import Result, run_all


def parse(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(partition, "_PIECE", 64)
    monkeypatch.setattr(partition, "_MOST_PIECES", 2)


@pytest.mark.parametrize("name", cli.EXPERIMENTS)
def test_quick(name, tmp_path, capsys, few_draws):
    cli.run(parse(name, "--quick", "--jobs", "1", "--out", str(tmp_path)))
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(table) > 1
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert set(claims["experiment"]) == {name}
    assert set(claims["verdict"]) <= {"holds", "holds in part", "does not hold"}
    shown = capsys.readouterr().out
    assert all(claim in shown for claim in claims["claim"])


def test_sizes_of_the_grid():
    names = list(fig2._variants(quick=False))
    assert sum(name.startswith("fixed") for name in names) == 25
    assert len(fig4.SETS) == 7


def test_claims_of_experiments_stand_side_by_side(tmp_path, capsys):
    path = tmp_path / "claims.csv"
    arguments = parse("theorem", "--quick", "--out", str(tmp_path))
    old = [("fig2", "c", "holds", ""), ("theorem", "old", "holds", "")]
    pd.DataFrame(old, columns=["experiment", "claim", "verdict", "evidence"]).to_csv(path)
    cli.run(arguments)
    found = pd.read_csv(path)
    assert found["experiment"].tolist() == ["fig2", "theorem"]
    assert "old" not in found["claim"].tolist()


@pytest.mark.parametrize("content", ["a,b\n1,2\n", ""])
def test_a_table_of_others_is_refused_before_anything_runs(content, tmp_path, monkeypatch):
    (tmp_path / "claims.csv").write_text(content)
    arguments = parse("theorem", "--quick", "--out", str(tmp_path))
    monkeypatch.setattr(cli, "EXPERIMENTS", {})
    with pytest.raises(ValueError, match=r"claims.csv is no table.*another --out"):
        cli.run(arguments)
    assert (tmp_path / "claims.csv").read_text() == content


def double(*, number, settings):
    if number < 0:
        raise ArithmeticError(number)
    return Result(pd.DataFrame({"value": [settings.factor * number]}), {})


class Settings(fig2.Sizes):
    factor = 2


def test_runs_resume(tmp_path, capsys):
    arguments = {"settings": Settings(), "jobs": 1}
    with pytest.raises(ArithmeticError):
        run_all(tmp_path, "x", double, {"a": {"number": 1}, "b": {"number": -1}}, **arguments)
    # "a" is there: were it run again, it would fail now.
    runs = {"a": {"number": -1}, "b": {"number": 3}}
    table, arrays = run_all(tmp_path, "x", double, runs, **arguments)
    assert table.to_dict("list") == {"value": [2, 6], "run": ["a", "b"]}
    assert arrays == {"a": {}, "b": {}}
    assert "1 of 2 runs to do" in capsys.readouterr().out


def test_runs_with_other_settings_are_refused(tmp_path):
    run_all(tmp_path, "x", double, {"a": {"number": 1}}, settings=Settings(), jobs=1)
    with pytest.raises(ValueError, match=r"other settings \(epochs\); give another --out"):
        run_all(tmp_path, "x", double, {}, settings=Settings(epochs=3), jobs=1)


def test_missing_images_are_noticed_before_anything_runs(tmp_path):
    with pytest.raises(OSError, match="no folder of images"):
        fig5.run(tmp_path, images=tmp_path / "missing")
    assert not (tmp_path / "runs").exists()


def test_other_pictures_in_a_folder_of_the_same_name_are_other_runs(tmp_path, monkeypatch):
    asked = []

    def run_all(out, experiment, function, runs, *, settings, jobs):
        asked.append(settings)
        raise InterruptedError

    monkeypatch.setattr(fig5, "run_all", run_all)
    pictures = fig5.load_images()
    for pixels in (pictures.pixels, pictures.pixels.clone(), pictures.pixels.flip(0)):
        monkeypatch.setattr(fig5, "load_images", lambda _, p=pixels: pictures._replace(pixels=p))
        with pytest.raises(InterruptedError):
            fig5.run(tmp_path, images=tmp_path)
    assert asked[0] == asked[1] != asked[2]


def test_the_spread_of_one_seed_is_not_judged():
    epochs = pd.DataFrame({"epoch": [0, 1], "nll": [1.0, 0.5], "nll_proxy": [1.0, 0.5]})
    runs = [
        epochs.assign(data="rings", method=method, seed=seed)
        for method in ("flow", "ours")
        for seed in (0, 1)
    ]
    for seeds, judged in (([0], False), ([0, 1], True)):
        rows = pd.concat([each for each in runs if each.seed[0] in seeds])
        better, _ = fig4._claims(fig4.summarise(rows), seeds)
        assert ("standard deviation" in better.evidence) == judged


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32)])
def test_few_and_coloured_images_are_drawn(shape, tmp_path):
    flow, ours = ({"samples": np.random.rand(32, *shape)} for _ in range(2))  # noqa: NPY002
    ours["images"] = np.ones((30, *shape))
    figure = fig5.plot(flow, ours)
    # Three rows of eight for thirty pictures, four for thirty-two.
    heights = [ax.get_images()[0].get_array().shape[0] // shape[1] for ax in figure.axes]
    assert heights == [3, 4, 4]


@pytest.mark.parametrize("words", [["fig9"], ["fig2", "--seeds", "-1"], []])
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)


@pytest.mark.slow
def test_the_dual_beats_a_perfectly_stopped_flow():
    # Draws that no figure reports. Seen on ten others: a gain of 0.13 to 0.17 nats; half is asked.
    data = split("gaussian_mixture", 77, num_train=100, num_validation=100, num_test=5000)
    flow, ours = (
        best_and_last(curve(train(method, data, seed=0, epochs=30), run=0), ["run"]).iloc[0]
        for method in ("flow", "ours")
    )
    truth = -gaussian_mixture().log_prob(data.test).mean().item()
    assert truth < ours["last"] < flow["best"] - 0.07
    assert ours["drift"] < 0.04 < flow["drift"]
