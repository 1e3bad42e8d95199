"""Simulators beside the ten tasks: difficulties, sciences, series, images, gaps, counts.

They have no reference posterior; methods are compared on them by held-out NLL
(``python -m sbi_jeffreys.bench_method --tasks simulators``). Functions take theta (n, d) and
return x (n, c), with torch's global random numbers. One more is a function and a line of its
module's table.
"""

from .base import Simulator
from .counts import COUNTS
from .difficulties import DIFFICULTIES
from .gaps import GAPS
from .science import SCIENCE
from .series import SERIES

__all__ = ["COUNTS", "DIFFICULTIES", "GAPS", "SCIENCE", "SERIES", "SIMULATORS", "Simulator"]

SIMULATORS = DIFFICULTIES | SCIENCE | SERIES | GAPS | COUNTS
