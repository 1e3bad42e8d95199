"""Files are written whole, by one process at a time, and nothing but files is replaced."""

import os
import stat

import pytest

from sbi_jeffreys.utils.files import atomic_write, locked


def test_a_pipe_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="pipe' is a device"), atomic_write(pipe):
        raise AssertionError("nothing is to be written")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_one(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("before")
    link.symlink_to(file)
    with atomic_write(link) as temporary:
        temporary.write_text("after")
    assert link.is_symlink()
    assert file.read_text() == "after"


def test_one_at_a_time(tmp_path):
    lock, written = tmp_path / ".lock", tmp_path / "table"
    with locked(lock, written), pytest.raises(ValueError, match=r"writing to .*table"):
        locked(lock, written).__enter__()
    with locked(lock, written):
        pass
