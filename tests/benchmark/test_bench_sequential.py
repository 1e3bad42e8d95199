"""Rounds at one observation: which simulations each method gets, and what the table says."""

import pandas as pd
import pytest
import torch

from sbi_jeffreys import bench_sequential
from sbi_jeffreys.bench_sequential import main


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    monkeypatch.setattr(bench_sequential, "_SAMPLES", 40)
    yield
    torch.set_num_threads(threads)


def run(path, *arguments):
    given = ["--jobs", "1", "--out", str(path), "--tasks", "two_moons", "--num-simulations", "61"]
    main([*given, "--rounds", "2", "--seeds", "3", *arguments])
    return pd.read_csv(path)


def test_two_rounds_of_two_methods(tmp_path, capsys):
    table = run(tmp_path / "made" / "out.csv", "--methods", "npe", "ml")
    assert list(table.method) == ["npe", "ml"]
    assert table.c2st.between(0, 1).all()
    assert table.nll.notna().all()
    assert (table.weight == 0).all()
    printed = capsys.readouterr().out
    assert "C2ST" in printed
    assert "two_moons" in printed


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    first = run(tmp_path / "out.csv", "--methods", "ml")
    monkeypatch.setattr(bench_sequential, "_posterior", None)
    pd.testing.assert_frame_equal(run(tmp_path / "out.csv", "--methods", "ml"), first)


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "out.csv").write_text("task,seed\n")
    with pytest.raises(SystemExit, match="no column \\['method', 'num_simulations', 'rounds'\\]"):
        run(tmp_path / "out.csv", "--methods", "ml")


def test_rounds_of_too_few_simulations(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "out.csv", "--rounds", "7")
    assert "--num-simulations 61 in --rounds 7: each needs 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "sizes"), [("jeffreys", [21, 20, 20]), ("jeffreys, one round", [61])]
)
def test_all_simulations_are_spent(method, sizes):
    assert bench_sequential._sizes(method, 61, 3) == sizes


def test_the_first_round_is_the_same_for_all_methods(monkeypatch):
    seen = []

    class Trainer:
        def __init__(self, prior, **kwargs):
            # As sbi's do.
            prior.sample((len(seen) + 1,))

        def append_simulations(self, theta, x, proposal=None):
            seen.append((theta, x, proposal))
            return self

        def train(self):
            pass

        def build_posterior(self):
            return self

        def set_default_x(self, x):
            return self

        def sample(self, shape, **kwargs):
            return torch.zeros(*shape, 2)

    monkeypatch.setitem(bench_sequential.METHODS, "npe", (Trainer, {}))
    monkeypatch.setitem(bench_sequential.METHODS, "ml", (Trainer, {}))
    task, x_o = bench_sequential.get_task("two_moons"), torch.zeros(1, 2)
    for method in ("npe", "ml"):
        torch.manual_seed(7)
        bench_sequential._posterior(task, x_o, method, [20, 10], 7)
    first, second, again, _ = seen
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] is None
    assert isinstance(second[2], Trainer)
    assert len(second[0]) == 10
