"""``python -m sbi_jeffreys.paper``: the same as ``sbi-jeffreys paper``."""

import argparse
import sys

from ..benchmark.arguments import exit_status
from .cli import add_arguments, run

__all__: list[str] = []

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m sbi_jeffreys.paper", description=__doc__)
    add_arguments(parser)
    sys.exit(exit_status("paper", lambda: run(parser.parse_args())))
