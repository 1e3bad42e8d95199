"""Files that are there whole or not at all, and that one process at a time writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["TEMPORARY", "atomic_write", "locked"]

# What the names of files begin with that are still being written.
TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour to write to, and rename it once it is on the disk.

    No reader ever sees half a file, and a writer that is killed leaves the old one.

    Args:
        path: File to write; of a link, what it points to.

    Raises:
        FileNotFoundError: If there is no such folder.
        IsADirectoryError: If it is a folder itself.
        OSError: If it is a device or a pipe, which renaming would replace.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: name a file in it.")
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is a device or a pipe: name a file.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} to.")
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        # Before the renaming: after a power cut the new name must not point to nothing.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock: Path, written: Path) -> Iterator[None]:
    """Keep other processes out; the lock ends with the process, however that ends.

    Args:
        lock: File that stands for it; it is made if it is missing, and stays.
        written: What is written meanwhile, for the message.

    Raises:
        ValueError: If another process has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out.
        yield
        return
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is writing to {written}; wait for it, or choose another --out."
            ) from None
        yield
