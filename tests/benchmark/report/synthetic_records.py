"""Records as a benchmark writes them, of jobs that nobody ran, with known means."""

import itertools
import json

import numpy as np

# As the benchmark writes them: single precision.
LEVELS = [0.0, 0.20000000298023224, 0.5, 0.75, 1.0]
OFFSETS = {"npe": 0.0, "jeffreys": -0.1, "ml": -0.03, "nle": 0.02}
NUM_OBSERVATIONS = 10


def make_record(task, method, num_simulations, seed, **changes):
    """A job's record: C2ST 0.8 plus the method's offset plus noise that all methods share."""
    shared = np.random.default_rng([seed, num_simulations, len(task)])
    own = np.random.default_rng([seed, num_simulations, len(task), *method.encode()])
    base = 0.86 - 0.03 * np.log10(num_simulations / 10) + OFFSETS.get(method, 0.01)
    noise = shared.normal(0.0, 0.03, NUM_OBSERVATIONS) + own.normal(0.0, 0.01, NUM_OBSERVATIONS)
    values = np.clip(base + noise, 0.5, 1.0)
    seconds = 10.0 * (1.0 + num_simulations / 1000) * (1.0 + len(method) / 10)
    record = {
        "schema": 1,
        "status": "ok",
        "job": {
            "task": task,
            "method": method,
            "num_simulations": num_simulations,
            "seed": seed,
        },
        "evaluation": {
            "observations": list(range(1, NUM_OBSERVATIONS + 1)),
            "num_samples": 10_000,
            "num_test": 2000,
        },
        "versions": {"sbi_jeffreys": "0.1", "torch": "2.13.0"},
        "machine": {"platform": "Linux", "cpus": 2},
        "started": "2026-01-01T00:00:00+00:00",
        "timings": {
            "simulation_seconds": 0.1,
            "training_seconds": seconds,
            "training_cpu_seconds": 0.9 * seconds,
            "total_cpu_seconds": 2.0 * seconds,
        },
        "peak_memory_mb": 512.0,
        "training": {"epochs": 100},
        "metrics": {
            "nll": 10 * base + len(task) + float(own.normal(0.0, 0.05)),
            "nll_standard_error": 0.02,
            "coverage_levels": LEVELS,
            "coverage": [level**1.2 for level in LEVELS],
            "coverage_error": 0.04,
        },
        "observations": [
            {
                "observation": i + 1,
                "c2st": float(value),
                "c2st_rf": float(min(value + 0.01, 1.0)),
                "leakage": 0.01,
                "jeffreys": None,
            }
            for i, value in enumerate(values)
        ],
        "error": None,
    }
    return record | changes


def failed(task, method, num_simulations, seed, message="Loss is NaN <script>alert(1)</script>"):
    """The record of a job that failed."""
    return make_record(
        task,
        method,
        num_simulations,
        seed,
        status="failed",
        metrics={},
        observations=[],
        error={"type": "RuntimeError", "message": message, "traceback": f"Traceback:\n{message}"},
    )


def write(folder, *records):
    """Write records where a benchmark does."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for record in records:
        job = record["job"]
        name = f"{job['task']}--{job['method']}--n{job['num_simulations']}--seed{job['seed']}"
        (folder / "records" / f"{name}.json").write_text(json.dumps(record))
    return folder


def write_grid(folder, tasks, methods, budgets, seeds, **changes):
    """Write the records of a full grid."""
    jobs = itertools.product(tasks, methods, budgets, range(seeds))
    return write(folder, *(make_record(*job, **changes) for job in jobs))
