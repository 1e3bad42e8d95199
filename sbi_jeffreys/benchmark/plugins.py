"""Files of the user that register methods or tasks.

A plugin travels to the workers as text, so that they need not see the file.
"""

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .arguments import read_text

__all__ = ["Plugin", "load_plugin", "read_plugin"]


class Plugin(NamedTuple):
    """A file of Python.

    Attributes:
        path: Where it was read; tracebacks name it.
        source: Its text.
    """

    path: str
    source: str


def read_plugin(path: Path) -> Plugin:
    """Read a plugin.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text.
    """
    return Plugin(str(path.resolve()), read_text(path))


def load_plugin(plugin: Plugin) -> None:
    """Execute a plugin as a module, once in a process.

    Raises:
        ValueError: If it fails, with its reason.
    """
    digest = hashlib.sha256(repr(plugin).encode()).hexdigest()[:16]
    name = f"sbi_jeffreys_plugin_{digest}"
    if name in sys.modules:
        return
    module = ModuleType(name)
    module.__file__ = plugin.path
    # Before it runs: dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        exec(compile(plugin.source, plugin.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"plugin {plugin.path}: {type(error).__name__}: {error}") from error
