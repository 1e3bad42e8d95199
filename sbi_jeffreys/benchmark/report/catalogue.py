"""The metrics that the report knows: how each is called, written and grouped.

All of them are better when lower. A metric of a record that is not listed here goes to
`results.csv` and nowhere else, since the report could not say which of two values is better.
"""

from typing import NamedTuple

__all__ = ["COSTS", "METRICS", "Metric", "format_number"]


class Metric(NamedTuple):
    """How one metric is shown."""

    label: str
    """Name in headings and on axes, with the unit."""
    digits: int
    """Digits after the point."""
    meaning: str
    """One sentence: what it is, and what the best value is."""
    drawn: bool = False
    """Whether it gets figures besides tables."""


METRICS: dict[str, Metric] = {
    "c2st": Metric(
        "C2ST",
        3,
        "Accuracy of a neural network that tells samples from the reference posterior; 0.5 is "
        "perfect, 1 the worst.",
        drawn=True,
    ),
    "c2st_rf": Metric(
        "C2ST, random forest",
        3,
        "Accuracy of a random forest that tells samples from the reference posterior; 0.5 is "
        "perfect, 1 the worst.",
        drawn=True,
    ),
    "nll": Metric(
        "Held-out NLL (nats)",
        2,
        "Mean of -log p(θ|x) over fresh simulations; its best value differs from task to task.",
        drawn=True,
    ),
    "jeffreys": Metric(
        "Jeffreys divergence (nats)",
        3,
        "Sum of both directions of KL between posterior and estimate; 0 is perfect.",
        drawn=True,
    ),
    "kl_forward": Metric("KL(posterior ‖ estimate) (nats)", 3, "0 is perfect."),
    "kl_reverse": Metric("KL(estimate ‖ posterior) (nats)", 3, "0 is perfect."),
    "mmd": Metric(
        "Squared MMD", 4, "Squared maximum mean discrepancy, unbiased: 0 or less is perfect."
    ),
    "sliced_wasserstein": Metric(
        "Sliced Wasserstein-2 distance", 3, "In units of the parameters; 0 is perfect."
    ),
    "mode_mass_error": Metric(
        "Error of mode masses", 3, "Total variation between masses of modes; 0 is perfect."
    ),
    "leakage": Metric(
        "Leakage", 4, "Fraction of raw draws outside the prior's support; 0 is perfect."
    ),
    "coverage_error": Metric(
        "Coverage error",
        3,
        "Distance of expected coverage of highest-density regions from its level; 0 is perfect.",
    ),
    "tarp_error": Metric(
        "TARP error", 3, "Distance of TARP's coverage from its level; 0 is perfect."
    ),
}

COSTS: dict[str, Metric] = {
    "training_cpu_seconds": Metric("Training (CPU s)", 1, "Processor seconds of training."),
    "training_seconds": Metric("Training (s)", 1, "Wall seconds of training."),
    "sampling_seconds": Metric("Sampling (s)", 1, "Wall seconds of drawing posterior samples."),
    "total_cpu_seconds": Metric(
        "Whole job (CPU s)", 1, "Processor seconds of the whole job, its metrics included."
    ),
    "epochs": Metric("Epochs", 0, "Epochs of training."),
    "peak_memory_mb": Metric("Peak memory (MB)", 0, "Largest resident memory of the job."),
}


def format_number(value: float, digits: int, *, sign: bool = False) -> str:
    """Write a number with a fixed count of digits, a true minus and no negative zero.

    >>> format_number(-1234.56, 1)
    '−1,234.6'
    >>> format_number(-0.0001, 3, sign=True)
    '0.000'
    """
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")
    return text.replace("-", "−")
