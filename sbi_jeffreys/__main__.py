"""``python -m sbi_jeffreys``: the same as ``sbi-jeffreys``."""

import sys

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
