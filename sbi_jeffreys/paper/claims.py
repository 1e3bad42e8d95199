"""Verdicts: a claim holds, holds in part, or does not hold, by tests that the code states."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Claim", "judge"]


class Claim(NamedTuple):
    """A claim of the paper and what became of it."""

    experiment: str
    claim: str
    verdict: str
    evidence: str


def judge(experiment: str, claim: str, tests: Mapping[str, bool], evidence: str = "") -> Claim:
    """Return the verdict on a claim that says several things.

    Args:
        experiment: Name of the experiment.
        claim: The claim, as the paper would put it.
        tests: What it amounts to, with numbers, and whether each of it was seen.
        evidence: What else was seen.

    Returns:
        "holds" if everything was seen, "does not hold" if nothing was, else "holds in part".

    Example:
        >>> judge("fig9", "A and B", {"A": True, "B": False}).verdict
        'holds in part'
    """
    seen = list(tests.values())
    verdict = "holds" if all(seen) else "holds in part" if any(seen) else "does not hold"
    parts = [f"{test}: {'yes' if true else 'no'}" for test, true in tests.items()]
    return Claim(experiment, claim, verdict, "; ".join([*parts, evidence] if evidence else parts))
