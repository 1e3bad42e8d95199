"""Tables of runs: what is there is not run again, and nobody else writes meanwhile."""

import pytest

from sbi_jeffreys.benchmark.table import complete


def row(seed):
    return {"seed": seed, "value": 2 * seed}


def table(path, *seeds, run=row, show=lambda row: None):
    return complete(path, ["seed"], [(seed,) for seed in seeds], run, 1, show)


def test_completed_and_not_repeated(tmp_path):
    path, done = tmp_path / "made" / "out.csv", []
    assert table(path, 1, 2).value.tolist() == [2, 4]
    found = table(path, 2, 3, show=lambda row: done.append(row["seed"]))
    assert (found.value.tolist(), done) == ([4, 6], [3])
    assert path.read_text().split() == ["seed,value", "1,2", "2,4", "3,6"]


def test_two_calls_do_not_share_a_file(tmp_path):
    path = tmp_path / "out.csv"

    def meanwhile(row):
        with pytest.raises(SystemExit, match=r"another run is writing to .*out\.csv"):
            table(path, 5)

    table(path, 1, show=meanwhile)
    assert table(path, 5).value.tolist() == [10]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1'])
def test_what_is_no_table_is_left_alone(content, tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"out\.csv (is no table|has no column)"):
        table(path, 1)
    assert path.read_bytes() == content
