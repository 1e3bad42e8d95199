"""The command line runs, and answers mistakes with a reason and status 2."""

import subprocess
import sys

import pandas as pd
import pytest
from sbi_jeffreys.tasks import list_tasks

from sbi_jeffreys import __version__, bench_train, demo
from sbi_jeffreys.benchmark import published
from sbi_jeffreys.cli import main

PNG = b"\x89PNG"


def test_version(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--version"])
    assert status.value.code == 0
    assert capsys.readouterr().out == f"sbi-jeffreys {__version__}\n"


def test_tasks_lists_every_task(capsys):
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_tasks())
    assert "5 parameters" in next(line for line in lines if line.startswith("slcp "))


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "sbi_jeffreys", "tasks"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("bernoulli_glm ")


def test_the_largest_seed_has_generators_of_its_own():
    largest = 2**63 - 1
    seeds = {demo._generator(seed, i).initial_seed() for seed in (0, largest) for i in (1, 2)}
    assert len(seeds) == 4


def test_demo_writes_table_and_figures(tmp_path, capfd):
    out = tmp_path / "new" / "demo"
    arguments = ["demo", "--quick", "--tasks", "two_moons", "--num-simulations", "60"]
    assert main([*arguments, "--out", str(out)]) == 0
    table = pd.read_csv(out / "table.csv")
    assert list(table["method"]) == list(demo.METHODS)
    assert table["c2st"].between(0, 1).all()
    assert (table["nll_standard_error"] > 0).all()
    assert not table.isna().any(axis=None)
    figures = sorted(path.name for path in out.glob("*.png"))
    assert figures == ["two_moons_posterior.png", "two_moons_training.png"]
    assert all((out / name).read_bytes().startswith(PNG) for name in figures)
    printed = capfd.readouterr().out
    assert "not corrected for leakage" in printed
    assert "mean over observations 1 of 10, 2 x 200 samples" in printed


def test_data_fetch_says_where_it_put_the_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(published, "fetch", lambda *, cache, wheel: cache / wheel.name)
    assert main(["data", "fetch", "--cache", str(tmp_path), "--wheel", "some/file.whl"]) == 0
    printed = capsys.readouterr().out
    assert f"are in {tmp_path}/file.whl" in printed
    assert f"SBI_JEFFREYS_CACHE={tmp_path}" in printed


@pytest.mark.slow
def test_bench_train_writes_times_and_memory(tmp_path):
    arguments = ["bench-train", "--quick", "--tasks", "two_moons", "--num-simulations", "500"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert (pd.read_csv(tmp_path / "time.csv")["seconds_per_epoch"] > 0).all()
    assert set(pd.read_csv(tmp_path / "memory.csv")["method"]) == set(bench_train.METHODS)


BENCH = ["bench", "run", "--tasks", "slcp", "--methods", "npe", "--budgets", "100", "--out", "OUT"]
MISUSE = {
    "no command": ([], "COMMAND"),
    "unknown command": (["dmeo"], "invalid choice: 'dmeo'"),
    "unknown task": (
        ["demo", "--tasks", "two_suns"],
        "no task 'two_suns', known are bernoulli_glm",
    ),
    "no number": (["demo", "--num-simulations", "many"], "invalid"),
    "no simulations": (["demo", "--num-simulations", "0"], "must be positive, got 0"),
    "negative seed": (["demo", "--seed", "-1"], "must not be negative, got -1"),
    "too few simulations": (
        ["demo", "--quick", "--num-simulations", "1", "--tasks", "slcp"],
        "simulations",
    ),
    "folder is a file": (["demo", "--out", "FILE"], "is a file where a folder"),
    "a part of the folder is a file": (["demo", "--out", "FILE/some"], "is a file where a folder"),
    "plugin is no text": ([*BENCH, "--plugin", "BYTES"], "is no text"),
    "no simulations to time": (["bench-train", "--num-simulations", "1"], "1 simulations are too"),
    "bench-train's folder is a file": (["bench-train", "--out", "FILE"], "FILE' is a file"),
    "no such device": (["bench-train", "--device", "tpu", "--out", "OUT"], "device must be"),
    "no bench command": (["bench"], "COMMAND"),
    "no data command": (["data"], "COMMAND"),
    "another wheel": (["data", "fetch", "--cache", "CACHE", "--wheel", "FILE"], "SHA-256"),
    "no wheel": (["data", "fetch", "--cache", "CACHE", "--wheel", "NONE"], "No such file"),
    "cache is a file": (["data", "fetch", "--cache", "FILE", "--wheel", "FILE"], "FILE"),
    "report on nothing": (["bench", "report", "NONE"], "NONE"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_gives_status_2_and_a_reason(case, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    (tmp_path / "BYTES").write_bytes(b"\xff")
    arguments, message = MISUSE[case]
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
