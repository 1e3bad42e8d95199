"""Methods for tests of the benchmark, in the form of a plugin."""

import os
import signal
import time
from pathlib import Path

from sbi_jeffreys.benchmark.methods import Fitted, register


class PriorPosterior:
    def __init__(self, prior):
        self.prior = prior

    def sample(self, shape, x):
        return self.prior.sample(shape)


def prior_only(prior, theta, x, *, seed, quick=False):
    return Fitted(PriorPosterior(prior), log_prob=lambda theta, x: prior.log_prob(theta), epochs=0)


def slow(prior, theta, x, *, seed, quick=False):
    time.sleep(1.0)
    return prior_only(prior, theta, x, seed=seed, quick=quick)


def long(prior, theta, x, *, seed, quick=False):
    (Path(os.environ["TEST_WORKERS"]) / str(os.getpid())).touch()
    time.sleep(120.0)


def elsewhere(prior, theta, x, *, seed, quick=False):
    os.chdir("/")
    return prior_only(prior, theta, x, seed=seed, quick=quick)


def broken(prior, theta, x, *, seed, quick=False):
    raise RuntimeError("out of luck")


def killer(prior, theta, x, *, seed, quick=False):
    # Whoever dies once must have died beside others: alone it would count as failed.
    marker, end = os.environ.get("KILLED_ONCE"), time.monotonic() + 60
    while marker and not Path(marker).exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def killer_once(prior, theta, x, *, seed, quick=False):
    marker = Path(os.environ["KILLED_ONCE"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return prior_only(prior, theta, x, seed=seed, quick=quick)


register("test_prior", prior_only)
register("test_slow", slow)
register("test_long", long)
register("test_elsewhere", elsewhere)
register("test_broken", broken)
register("test_killer", killer)
register("test_killer_once", killer_once)
