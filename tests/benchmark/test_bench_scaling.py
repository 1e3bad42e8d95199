"""The scaling benchmark: every case is measured in a process of its own."""

import math

import pandas as pd
import torch

from sbi_jeffreys import bench_scaling
from sbi_jeffreys.bench_scaling import CASES, Case, main


def test_one_small_case(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setitem(CASES, "d = 2", Case(60, 2, 3, True, 1))
    main(["--one", "d = 2"])
    torch.set_num_threads(threads)
    assert '"seconds_per_epoch"' in capsys.readouterr().out


def test_table(monkeypatch, tmp_path):
    def run(command, **kwargs):
        found = '{"seconds_per_epoch": 2.0, "megabytes": 3.0, "training_nll": 1.0}'
        return type("Done", (), {"stdout": f"a line before\n{found}\n"})

    monkeypatch.setattr(bench_scaling.subprocess, "run", run)
    main(["--cases", "d = 2", "n = 10,000", "--out", str(tmp_path / "made" / "out.csv")])
    table = pd.read_csv(tmp_path / "made" / "out.csv")
    assert list(table.case) == ["d = 2", "n = 10,000"]
    assert math.isclose(table.microseconds_per_simulation[1], 200.0)
