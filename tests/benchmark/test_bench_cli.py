"""`bench run` from the command line and from a file."""

import json
import re
from pathlib import Path

import pytest

from sbi_jeffreys.benchmark import methods, report, runner
from sbi_jeffreys.benchmark.jobs import METRICS, Evaluation
from sbi_jeffreys.benchmark.runner import Summary
from sbi_jeffreys.cli import main

PLUGIN = str(Path(__file__).parent / "plugin_methods.py")
NEEDED = ["--tasks", "two_moons", "--methods", "npe", "--budgets", "10", "--out", "OUT"]


@pytest.fixture
def asked(monkeypatch):
    """What the runner is asked to do, instead of doing it."""
    calls = {}

    def run_benchmark(out, **kwargs):
        calls.update(out=out, **kwargs)
        return Summary(1, 1, ())

    monkeypatch.setattr(runner, "run_benchmark", run_benchmark)
    return calls


def test_run_writes_records_and_status(tmp_path, capsys):
    out = tmp_path / "out"
    common = ["bench", "run", "--tasks", "two_moons", "--budgets", "20", "--out", str(out)]
    common += ["--quick", "--metrics", "nll", "--plugin", PLUGIN]
    assert main([*common, "--methods", "test_prior", "--seeds", "0:2"]) == 0
    assert "2 jobs, 2 of them done now" in capsys.readouterr().out
    assert len(list((out / "records").iterdir())) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["command"].startswith("sbi-jeffreys bench run --tasks two_moons --budgets 20")
    assert Evaluation.from_json(config["evaluation"]) == Evaluation(
        observations=(1,), num_samples=200, num_test=200, num_coverage=100, metrics=("nll",),
        quick=True,
    )  # fmt: skip
    assert main([*common, "--methods", "test_broken"]) == 1
    assert "two_moons--test_broken--n20--seed0" in capsys.readouterr().out
    assert main([*common, "--methods", "test_prior", "--num-samples", "30"]) == 2
    assert "num_samples was 200, now 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "baseline"), [(["ml", "npe"], ""), (["jeffreys", "ml"], " --baseline jeffreys")]
)
def test_the_command_that_comes_next_works(names, baseline, asked, capsys):
    arguments = [*NEEDED[:2], "--methods", *names, *NEEDED[4:]]
    assert main(["bench", "run", *arguments]) == 0
    assert capsys.readouterr().out.endswith(f"bench report OUT{baseline}\n")


def test_defaults(asked):
    assert main(["bench", "run", *NEEDED]) == 0
    assert asked["evaluation"] == Evaluation()
    assert asked["seeds"] == [0]
    assert (asked["jobs"], asked["backend"], asked["scheduler"]) == (1, "joblib", None)


def test_flags(asked):
    flags = ["--seeds", "0:3", "7", "--jobs", "2", "--backend", "dask", "--scheduler", "tcp://h:1"]
    flags += ["--observations", "1:3", "5", "--metrics", "all", "--reference", "published"]
    flags += ["--plugin", "a.py", "--plugin", "b.py", "--retry-failed"]
    assert main(["bench", "run", *NEEDED, *flags]) == 0
    assert asked["seeds"] == [0, 1, 2, 7]
    assert asked["evaluation"] == Evaluation(
        observations=(1, 2, 5), metrics=METRICS, reference="published"
    )
    assert asked["plugins"] == [Path("a.py"), Path("b.py")]
    assert asked["retry_failed"] is True


def test_file_and_flags_that_override_it(asked, tmp_path):
    # YAML 1.1 takes 1:5 for 65; here it is a range.
    (tmp_path / "run.yaml").write_text(
        "tasks: [slcp, two_moons]\nmethods: npe\nbudgets: [100, 1000]\nseeds: 1:5\nout: from_file\n"
        "observations: fresh:3\nnum_samples: 50\nquick: true\nretry-failed: false\nplugin: [p.py]\n"
    )
    assert main(["bench", "run", "--config", "run.yaml", "--methods", "ml", "--no-quick"]) == 0
    assert asked["tasks"] == ["slcp", "two_moons"]
    assert asked["methods"] == ["ml"]
    assert asked["budgets"] == [100, 1000]
    assert asked["seeds"] == [1, 2, 3, 4]
    assert asked["out"] == Path("from_file")
    assert asked["evaluation"] == Evaluation(observations="fresh:3", num_samples=50)
    assert asked["plugins"] == [Path("p.py")]


MISUSE = {
    "nothing": ([], "needs --tasks, --methods, --budgets, --out"),
    "seeds": ([*NEEDED, "--seeds", "a:b"], "not a number or a range like 0:5: 'a:b'"),
    "endless range": ([*NEEDED, "--seeds", "0:9999999999999"], "more than 100000 numbers in '0:9"),
    "empty range": ([*NEEDED, "--seeds", "5:0"], "no numbers from 0 up in '5:0'"),
    "observation": ([*NEEDED, "--observations", "first"], "neither official nor fresh:N"),
    "metric": ([*NEEDED, "--metrics", "beauty"], "unknown metrics ['beauty'], known are nll"),
    "method": ([*NEEDED[:3], "nppe", *NEEDED[4:]], "unknown method 'nppe', known are"),
    "task": ([NEEDED[0], "moons", *NEEDED[2:]], "unknown task 'moons', known are"),
    "no file": (["--config", "NONE.yaml"], "No such file"),
    "no plugin": ([*NEEDED, "--plugin", "NONE.py"], "No such file"),
}
FILES = {
    "no mapping": ("- 1", "must be a mapping"),
    "no YAML": ("a: [", "is not YAML"),
    "unknown key": ("taks: slcp", "unknown key 'taks', known are backend, budgets"),
    "flag that is none": ("quick: maybe", "quick must be true or false, got 'maybe'"),
    "wrong number": ("budgets: many", "invalid int value: 'many'"),
}


def status_of(arguments):
    try:
        return main(["bench", "run", *arguments])
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize("case", MISUSE)
def test_misuse(case, tmp_path, capsys):
    arguments, message = MISUSE[case]
    assert status_of(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_that_exits_is_named(tmp_path, capsys):
    (tmp_path / "leaving.py").write_text("import sys; sys.exit(3)")
    assert status_of([*NEEDED, "--plugin", str(tmp_path / "leaving.py")]) == 2
    assert re.search("plugin .*leaving.py: SystemExit: 3", capsys.readouterr().err)


@pytest.mark.parametrize("case", FILES)
def test_misuse_in_a_file(case, tmp_path, capsys):
    text, message = FILES[case]
    (tmp_path / "run.yaml").write_text(text)
    assert status_of(["--config", str(tmp_path / "run.yaml")]) == 2
    assert re.search(re.escape(message), capsys.readouterr().err)


def test_interruption_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    calls = []

    def interrupt(job, evaluation, references):
        if calls:
            raise KeyboardInterrupt
        calls.append(job)
        return real(job, evaluation, references=references)

    real = runner.run_job
    monkeypatch.setattr(runner, "run_job", interrupt)
    arguments = ["--tasks", "two_moons", "--methods", "test_prior", "--budgets", "10"]
    arguments += ["--seeds", "0:2", "--quick", "--metrics", "nll", "--plugin", PLUGIN]
    assert status_of([*arguments, "--out", str(tmp_path)]) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert [p.stem for p in (tmp_path / "records").iterdir()] == [calls[0].id]


def test_method_of_the_documentation_runs(tmp_path, capsys, monkeypatch):
    # What it registers must not outlive it.
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    text = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "abc.py").write_text(code)
    arguments = ["--tasks", "two_moons", "--methods", "abc", "--budgets", "500", "--metrics", "all"]
    arguments += ["--plugin", str(tmp_path / "abc.py"), "--out", str(tmp_path), "--quick"]
    assert status_of([*arguments, "--num-samples", "50"]) == 0
    (path,) = (tmp_path / "records").iterdir()
    record = json.loads(path.read_text())
    (row,) = record["observations"]
    # Every twentieth simulation is nearer to the posterior than the prior is, but not close.
    assert 0.6 < row["c2st_rf"] < 1
    # The documentation names every key.
    for keys in (record, record["timings"], record["metrics"], row, record["evaluation"]):
        named = [key.removesuffix("_standard_error") for key in keys]
        assert [key for key in named if f"`{key}`" not in text] == []


def test_official_observations_are_all_of_them(asked):
    assert main(["bench", "run", *NEEDED, "--observations", "official"]) == 0
    assert asked["evaluation"] == Evaluation(observations=tuple(range(1, 11)))


def test_several_plugins_in_a_file(asked, tmp_path):
    (tmp_path / "run.yaml").write_text("plugin: [a.py, b.py]\n")
    assert main(["bench", "run", *NEEDED, "--config", str(tmp_path / "run.yaml")]) == 0
    assert asked["plugins"] == [Path("a.py"), Path("b.py")]


def test_arguments_of_a_report(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        report, "write_report", lambda *args, **kwargs: calls.append((args, kwargs)) or "PAGE"
    )
    assert main(["bench", "report", "DIR"]) == 0
    assert main(["bench", "report", "DIR", "--out", "OUT", "--baseline", "ml"]) == 0
    assert calls == [
        ((Path("DIR"), None), {"baseline": "npe"}),
        ((Path("DIR"), Path("OUT")), {"baseline": "ml"}),
    ]
    assert capsys.readouterr().out == "PAGE\nPAGE\n"
