"""What a fitted method is worth: over new simulations, and at one observation.

NLL and coverage are those of the density as it was trained, with what leaks out of the prior.
Samples, and the divergences, are those of the posterior that a user gets, which rejects it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sbi.inference import VectorFieldPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch import Tensor

from ..metrics import (
    c2st,
    coverage,
    divergences_to_truth,
    leakage,
    mmd2,
    mode_mass_error,
    sliced_wasserstein,
)
from ..tasks import Task
from .jobs import Evaluation, Job
from .methods import Fitted
from .references import Observation, generator

__all__ = ["at_observation", "draw", "over_simulations"]

# Rows whose density is evaluated at a time.
CHUNK = 5000
# Seconds for the samples at one observation: where nearly all mass leaks, rejection never ends.
PATIENCE = 600.0

# Metrics of two sets of samples. The reference comes first, as in sbibm.
SAMPLE_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "c2st": c2st,
    "c2st_rf": partial(c2st, classifier="rf"),
    "mmd": mmd2,
    "sliced_wasserstein": sliced_wasserstein,
}


def draw(fitted: Fitted, x: Tensor, evaluation: Evaluation, dim: int) -> Tensor:
    """Draw posterior samples at one observation.

    Args:
        fitted: Fitted method.
        x: Observation, shape (1, *).
        evaluation: Says how many.
        dim: Number of parameters d.

    Returns:
        Samples, shape (n, d).

    Raises:
        TypeError: If the posterior gives no tensor.
        ValueError: If it gives another shape, or NaN.
        RuntimeError: If sbi's rejection of what leaks out of the prior takes too long.
    """
    n, kwargs = evaluation.num_samples, _silent(fitted)
    if _rejects(fitted):
        # After two epochs most mass may leak: a smoke test takes it as it comes.
        kwargs.update(reject_outside_prior=not evaluation.quick, max_sampling_time=PATIENCE)
    samples = fitted.posterior.sample((n,), x=x, **kwargs)
    call = f"posterior.sample(({n},), x=x)"
    if not isinstance(samples, Tensor):
        raise TypeError(f"{call} gave {type(samples).__name__}: return a tensor.")
    samples = samples.detach().cpu()
    if samples.shape != (n, dim):
        raise ValueError(f"{call} gave shape {tuple(samples.shape)}, not ({n}, {dim}).")
    odd = int((~samples.isfinite().all(dim=1)).sum())
    if odd:
        raise ValueError(f"{call} gave {odd} samples with NaN or inf.")
    return samples


def _silent(fitted: Fitted) -> dict[str, Any]:
    return {"show_progress_bars": False} if isinstance(fitted.posterior, NeuralPosterior) else {}


def _rejects(fitted: Fitted) -> bool:
    """Say whether the posterior draws from a density of sbi and rejects what leaks."""
    of_sbi = bool(fitted.estimators) and isinstance(fitted.posterior, NeuralPosterior)
    return of_sbi or isinstance(fitted.posterior, VectorFieldPosterior)


class _AllDraws:
    """A posterior with the draws and the density that leak, as far as it has such."""

    def __init__(self, fitted: Fitted) -> None:
        posterior = fitted.posterior
        if _rejects(fitted):
            # Without rejection sbi keeps a graph: 400,000 draws of ten parameters took 24 GB.
            all_draws = partial(posterior.sample_batched, reject_outside_prior=False)
            self.sample_batched = torch.no_grad()(all_draws)
        else:
            one_by_one = partial(_one_by_one, posterior)
            self.sample_batched = getattr(posterior, "sample_batched", one_by_one)
        self.potential = lambda theta, x: _log_prob(fitted, theta, x.expand(len(theta), *x.shape))


def _one_by_one(posterior: Any, shape: tuple[int], x: Tensor, **_: Any) -> Tensor:
    """Return draws (*shape, n, d) of a posterior that takes one of n data at a time."""
    return torch.stack([posterior.sample(shape, x=row) for row in x.split(1)], dim=1)


@torch.no_grad()
def _log_prob(fitted: Fitted, theta: Tensor, x: Tensor) -> Tensor:
    """Return log densities in float64; x has as many rows as theta."""
    assert fitted.log_prob is not None
    pairs = zip(theta.split(CHUNK), x.split(CHUNK), strict=True)
    values = []
    for some, their_x in pairs:
        value = fitted.log_prob(some, their_x).double()
        if value.shape != (len(some),):
            raise ValueError(
                f"log_prob(theta, x) with theta of shape {tuple(some.shape)} gave shape "
                f"{tuple(value.shape)}, not ({len(some)},)."
            )
        values.append(value)
    return torch.cat(values)


def over_simulations(
    task: Task, fitted: Fitted, job: Job, evaluation: Evaluation
) -> dict[str, Any]:
    """Return the metrics that average over new simulations.

    Args:
        task: Task.
        fitted: Fitted method.
        job: Its task and seed decide the simulations.
        evaluation: Says which metrics, and how many simulations.

    Returns:
        Values by name; ``None`` for what the method does not allow.
    """
    metrics: dict[str, Any] = {}
    if "nll" in evaluation.metrics:
        metrics.update(nll=None, nll_standard_error=None)
        if fitted.log_prob is not None:
            seed = generator("test", job.task, job.seed)
            nll = -_log_prob(fitted, *task.simulate(evaluation.num_test, generator=seed))
            metrics["nll"] = nll.mean().item()
            metrics["nll_standard_error"] = (nll.std() / len(nll) ** 0.5).item()
    if "coverage" in evaluation.metrics:
        metrics.update(coverage_error=None, tarp_error=None)
        # The density ranks the draws; where each x needs a Markov chain there are too many x.
        if fitted.amortised and fitted.log_prob is not None:
            seed = generator("coverage", job.task, job.seed)
            theta, x = task.simulate(evaluation.num_coverage, generator=seed)
            metrics.update(_coverage(fitted, theta, x, draws=100 if evaluation.quick else 1000))
    return metrics


def _coverage(fitted: Fitted, theta: Tensor, x: Tensor, *, draws: int) -> dict[str, Any]:
    # Like the NLL that of the density: to reject, at the worst of all x, could take forever.
    posterior: Any = _AllDraws(fitted)
    result = coverage(posterior, theta, x, draws=draws)
    return {
        "coverage_levels": result.levels.tolist(),
        "coverage": result.highest_density.tolist(),
        "coverage_error": (result.highest_density - result.levels).abs().mean().item(),
        "tarp": result.tarp.tolist(),
        "tarp_error": (result.tarp - result.levels).abs().mean().item(),
        "sbc_p_values": result.p_values.tolist(),
    }


def at_observation(
    task: Task,
    fitted: Fitted,
    observation: Observation,
    reference: Tensor,
    samples: Tensor,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Return the metrics at one observation.

    Args:
        task: Task.
        fitted: Fitted method.
        observation: Observation.
        reference: Reference samples, shape (n, d).
        samples: Posterior samples, shape (n, d).
        evaluation: Says which metrics.

    Returns:
        Values by name; ``None`` for what the method does not allow.
    """
    asked = evaluation.metrics
    row: dict[str, Any] = {
        name: metric(reference, samples) for name, metric in SAMPLE_METRICS.items() if name in asked
    }
    if "mode_mass" in asked:
        row.update(_mode_mass(task, reference, samples))
    leaked = None
    if fitted.estimators and ("leakage" in asked or "divergences" in asked):
        # As many draws as samples: the error of the correction must not show in divergences.
        draws = {"draws": evaluation.num_samples}
        fractions = [leakage(e, task.prior, observation.x, **draws) for e in fitted.estimators]
        leaked = torch.stack(fractions).mean().item()
    if "leakage" in asked:
        row["leakage"] = leaked
    if "divergences" in asked:
        row.update(_divergences(task, fitted, observation.x, reference, samples, leaked or 0.0))
    return row


def _mode_mass(task: Task, reference: Tensor, samples: Tensor) -> dict[str, float]:
    try:
        labels, of_reference = task.modes(samples), task.modes(reference)
    except NotImplementedError:
        return {}
    return {"mode_mass_error": mode_mass_error(labels, of_reference).total_variation}


def _divergences(
    task: Task, fitted: Fitted, x: Tensor, reference: Tensor, samples: Tensor, leaked: float
) -> dict[str, float | None]:
    """Return divergences between truth and posterior, which is the density less what leaks."""
    names = ("kl_forward", "kl_reverse", "jeffreys")
    nothing: dict[str, float | None] = {
        key: None for name in names for key in (name, f"{name}_standard_error")
    }
    if fitted.log_prob is None or leaked == 1.0:
        return nothing
    kept = np.log1p(-leaked)
    values = {}
    for name, theta in (("truth", reference), ("model", samples)):
        values[f"truth_at_{name}"] = task.log_posterior_unnormalized(theta, x).double()
        rows = x.expand(len(theta), *x.shape[1:])
        values[f"model_at_{name}"] = _log_prob(fitted, theta, rows) - kept
    if any(torch.isneginf(value).all() for value in values.values()):
        # Few samples, all of them where the other has no mass.
        return nothing
    found = divergences_to_truth(**values)
    estimates = (found.forward, found.reverse, found.jeffreys)
    return {
        key: value
        for name, estimate in zip(names, estimates, strict=True)
        for key, value in (
            (name, estimate.value),
            (f"{name}_standard_error", estimate.standard_error),
        )
    }
