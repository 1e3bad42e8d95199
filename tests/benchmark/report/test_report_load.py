"""What is read from records, and what is said of those that cannot be."""

import json

import pytest
from synthetic_records import failed, make_record, write, write_grid

from sbi_jeffreys.benchmark.jobs import Job
from sbi_jeffreys.benchmark.report.load import load_results


def test_every_number_is_a_row(tmp_path):
    record = make_record("slcp", "npe", 1000, 3)
    table = load_results(write(tmp_path, record)).table
    assert set(table["task"]) == {"slcp"}
    assert set(table["seed"]) == {3}
    values = table.set_index(["observation", "metric"])["value"]
    assert values["all", "nll"] == record["metrics"]["nll"]
    assert values["all", "training_cpu_seconds"] == record["timings"]["training_cpu_seconds"]
    assert values["all", "peak_memory_mb"] == 512.0
    assert values["all", "epochs"] == 100
    assert values["7", "c2st"] == record["observations"][6]["c2st"]
    assert values["all", "coverage@0.2"] == record["metrics"]["coverage"][1]
    # null: not to be had.
    assert "jeffreys" not in set(table["metric"])


def test_what_is_not_finite_is_left_out(tmp_path):
    # JSON has no infinity, but numbers that overflow; true is no number.
    record = make_record("slcp", "npe", 1000, 0)
    record["metrics"] |= {"nll": 123456789, "flag": True}
    path = write(tmp_path, record) / "records" / "slcp--npe--n1000--seed0.json"
    path.write_text(path.read_text().replace("123456789", "1e999"))
    assert not set(load_results(tmp_path).table["metric"]) & {"nll", "flag"}


def test_failed_missing_and_corrupt_are_kept_apart(tmp_path):
    write_grid(tmp_path, ["slcp", "sir"], ["npe", "ml"], [100], 2)
    write(tmp_path, failed("slcp", "ml", 100, 0))
    records = tmp_path / "records"
    (records / "sir--ml--n100--seed1.json").unlink()
    (records / "slcp--npe--n100--seed1.json").write_text('{"schema": 1, "sta')
    (records / ".tmp-x.json").write_text("half")
    results = load_results(tmp_path)
    assert list(results.failed) == [Job("slcp", "ml", 100, 0)]
    assert results.missing == [Job("sir", "ml", 100, 1), Job("slcp", "npe", 100, 1)]
    assert list(results.corrupt) == ["slcp--npe--n100--seed1.json"]
    assert len(results.records) == 5
    assert ("slcp", "ml", 0) not in {
        tuple(r) for r in results.table[["task", "method", "seed"]].values
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"status": "running"}, "status is 'running'"),
        ({"observations": [1]}, "observations is not a list"),
        ({"metrics": [1]}, "metrics is not an object"),
        ({"evaluation": "quick"}, "evaluation is not an object"),
        ({"error": "boom"}, "error is not an object"),
    ],
)
def test_reasons(tmp_path, changes, reason):
    write_grid(tmp_path, ["slcp"], ["npe"], [100], 1)
    write(tmp_path, make_record("slcp", "npe", 100, 1, **changes))
    (found,) = load_results(tmp_path).corrupt.values()
    assert reason in found


def test_a_record_too_deep_to_read_is_corrupt(tmp_path):
    write_grid(tmp_path, ["slcp"], ["npe"], [100], 1)
    (tmp_path / "records" / "deep.json").write_text("[" * 100_000)
    assert "not JSON" in load_results(tmp_path).corrupt["deep.json"]


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match=r"no records in .*sbi-jeffreys bench run --out"):
        load_results(tmp_path)


def test_no_readable_record(tmp_path):
    write(tmp_path, make_record("slcp", "npe", 100, 0, schema=0))
    with pytest.raises(
        ValueError, match=r"None of the 1 records .* can be read; slcp--npe.*schema"
    ):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (json.dumps({"command": "sbi-jeffreys bench run"}), "sbi-jeffreys bench run"),
        (json.dumps({"command": None}), None),
        (json.dumps([1]), None),
        ("{", None),
    ],
)
def test_command(tmp_path, content, command):
    write_grid(tmp_path, ["slcp"], ["npe"], [100], 1)
    (tmp_path / "config.json").write_text(content)
    assert load_results(tmp_path).command == command
