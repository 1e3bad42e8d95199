"""Records are whole or not there, and a wrong one is recognised by what is wrong."""

import json
import math
import subprocess
import sys

import pytest

from sbi_jeffreys.benchmark.evaluate import failed_record
from sbi_jeffreys.benchmark.jobs import Evaluation, Job
from sbi_jeffreys.benchmark.records import (
    RecordError,
    read_record,
    record_path,
    remove_stale,
    shared_config,
    write_json,
)

JOB = Job("slcp", "npe", 10, 0)
EVALUATION = Evaluation(num_samples=20)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "records").mkdir()
    path = record_path(tmp_path, JOB)
    write_json(path, failed_record(JOB, EVALUATION, RuntimeError("why")))
    return path


def test_record_survives_the_disk(path):
    record = read_record(path, evaluation=EVALUATION)
    assert record["status"] == "failed"
    assert record["error"] == {
        "type": "RuntimeError",
        "message": "why",
        "traceback": "RuntimeError: why\n",
    }


def test_what_is_not_finite_is_null(path):
    write_json(path, {"a": [math.nan, -math.inf, 1.5], "b": {"c": math.inf}})
    assert json.loads(path.read_text()) == {"a": [None, None, 1.5], "b": {"c": None}}


def edit(record, *keys, value):
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = value


CORRUPT = {
    "empty": (lambda text: "", "not JSON"),
    "cut off": (lambda text: text[: len(text) // 2], "not JSON"),
    "no JSON": (lambda text: text.replace("null", "NaN", 1), "NaN is no JSON"),
    "list": (lambda text: "[]", "list"),
    "bytes": (lambda text: "\udcff", "not JSON"),
}
WRONG = {
    "schema": (("schema",), 2, "schema is 2, not 1"),
    "status": (("status",), "fine", "status is 'fine'"),
    "another job": (("job", "seed"), 1, "it is of job slcp--npe--n10--seed1"),
    "no job": (("job",), {"task": "slcp"}, "its job is wrong"),
    "evaluation": (("evaluation", "num_test"), 3, "not that of config.json"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_record(case, path):
    change, message = CORRUPT[case]
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(RecordError, match=message):
        read_record(path)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_record(case, path):
    keys, value, message = WRONG[case]
    record = json.loads(path.read_text())
    edit(record, *keys, value=value)
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=message):
        read_record(path, evaluation=EVALUATION)


def test_failed_writing_leaves_the_old_record_and_nothing_else(path, monkeypatch):
    before = path.read_text()

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {})
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_killed_writer_leaves_the_old_record(path):
    before = path.read_text()
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from sbi_jeffreys.benchmark.records import write_json\n"
        "write_json(Path(sys.argv[1]), {'half': 1})"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_text() == before
    assert len(list(path.parent.iterdir())) == 2
    remove_stale(path.parent.parent)
    assert list(path.parent.iterdir()) == [path]


def test_what_others_have_there_stays(path):
    folder = path.parent.parent
    (folder / "below" / "records").mkdir(parents=True)
    hexadecimal = "0123456789abcdef" * 2
    others = [folder / ".tmp-notes.txt", folder / "below" / "records" / f".tmp-{hexadecimal}.json"]
    for other in others:
        other.touch()
    (folder / f".tmp-{hexadecimal}").mkdir()
    left = folder / f".tmp-{hexadecimal}.json"
    left.touch()
    remove_stale(folder)
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_config_is_kept_and_refuses_another_evaluation(tmp_path):
    shared_config(tmp_path, EVALUATION, command="sbi-jeffreys bench run")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "one.json").touch()
    shared_config(tmp_path, EVALUATION, command="another")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["command"] == "sbi-jeffreys bench run"
    with pytest.raises(ValueError, match="num_samples was 20, now 30"):
        shared_config(tmp_path, Evaluation(num_samples=30))


def test_records_without_their_config_are_not_written_over(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "some.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no config.json.*another --out"):
        shared_config(tmp_path, EVALUATION)
    assert not (tmp_path / "config.json").exists()


def test_a_run_without_a_record_binds_nobody(tmp_path):
    shared_config(tmp_path, EVALUATION, command="sbi-jeffreys bench run")
    shared_config(tmp_path, Evaluation(num_samples=30), command="another")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["command"] == "another"
    assert config["evaluation"]["num_samples"] == 30


@pytest.mark.parametrize("text", ["", "{}", '{"evaluation": {"num_samples": 3}}'])
def test_unusable_config_is_an_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "one.json").touch()
    with pytest.raises(ValueError, match=r"config\.json cannot be used"):
        shared_config(tmp_path, EVALUATION)


@pytest.mark.parametrize(
    "key", ["job", "evaluation", "timings", "training", "metrics", "observations", "error"]
)
def test_incomplete_record(key, path):
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=f"without {key}"):
        read_record(path)


def test_what_is_not_finite_in_tuples_is_null(path):
    write_json(path, {"a": (math.nan, 1.5), "b": [({"c": (math.inf,)},)]})
    assert json.loads(path.read_text()) == {"a": [None, 1.5], "b": [[{"c": [None]}]]}


def test_stale_files_go_from_every_folder_of_a_run(tmp_path):
    for place in (tmp_path, tmp_path / "records", tmp_path / "reference"):
        place.mkdir(exist_ok=True)
        (place / f".tmp-{'0123456789abcdef' * 2}.npy").touch()
        (place / "kept.npy").touch()
    remove_stale(tmp_path)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"kept.npy"}
    assert len(list(tmp_path.rglob("kept.npy"))) == 3
