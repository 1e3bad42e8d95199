"""Being told to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["ends_like_ctrl_c"]


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Take SIGTERM, as a batch system sends it, for Ctrl-C: workers are ended, not left behind."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what a signal does.
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
