"""What is compared: named functions from simulations to a posterior.

A method is a function ``fit(prior, theta, x, *, seed, quick=False) -> Fitted``. Anyone can
:func:`register` one, for example in a file that ``sbi-jeffreys bench run --plugin FILE`` imports;
``docs/benchmark.md`` has a complete example. Ours and sbi's are registered at the end of this file,
sbi's with its defaults.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from sbi.inference import FMPE, NLE, NPE, NPSE, NRE, EnsemblePosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from ..divergences import log_mean_exp
from ..flows import flow_nn
from ..trainer import JeffreysNPE
from ..utils.quiet import quiet, silent
from .jobs import check_name

__all__ = ["Fit", "Fitted", "get_method", "list_methods", "register", "trained_as"]

NUM_MEMBERS = 5
QUICK_EPOCHS = 2


@dataclass(frozen=True)
class Fitted:
    """What a method hands back.

    Attributes:
        posterior: sbi's posterior, or anything with ``sample((n,), x=x)``, x of shape (1, *), that
            returns samples of shape (n, d).
        log_prob: Normalised log density in nats, from theta, shape (n, d), and x, shape (n, *), to
            shape (n); ``None`` where it cannot be had, or only at a price.
        epochs: Epochs of training, of all members of an ensemble together.
        summary: Record of the training, a list over epochs by name.
        amortised: Whether sampling at a new x costs no training and no Markov chain.
        estimators: Density estimators of which ``log_prob`` is the mean density. Leakage is theirs,
            and ``posterior`` rejects what leaks.
    """

    posterior: Any
    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None
    epochs: int | None = None
    summary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    amortised: bool = True
    estimators: tuple[ConditionalDensityEstimator, ...] = ()


class Fit(Protocol):
    """A method."""

    def __call__(
        self, prior: Distribution, theta: Tensor, x: Tensor, *, seed: int, quick: bool = False
    ) -> Fitted:
        """Train on simulations.

        Args:
            prior: Prior of the task.
            theta: Parameters, shape (n, d), drawn from the prior.
            x: Data, shape (n, *).
            seed: Seed for whatever has its own; torch's, numpy's and Python's global generators are
                seeded already.
            quick: Whether to do as little as possible: a smoke test.
        """


_METHODS: dict[str, Fit] = {}
_TRAINED_AS: dict[str, str] = {}


def register(name: str, fit: Fit, *, trained_as: str | None = None) -> None:
    """Add a method, or replace the one of that name.

    Args:
        name: Name of letters, digits, ``_``, ``.``, ``+`` and single hyphens between them.
        fit: The method.
        trained_as: Name of the method whose seeds it trains with, where only what is made of the
            training differs; ``None`` for seeds of its own.

    Raises:
        ValueError: If the name could not be part of a record's file name.
        TypeError: If `fit` cannot be called.

    Example:
        >>> register("two--hyphens", lambda prior, theta, x, *, seed, quick=False: Fitted(None))
        Traceback (most recent call last):
        ValueError: method name 'two--hyphens' must consist of letters, digits, _, ., + and single \
hyphens between them.
    """
    check_name("method", name)
    if not callable(fit):
        raise TypeError(f"method {name!r} must be a function, got {type(fit).__name__}.")
    _METHODS[name] = fit
    _TRAINED_AS[name] = name if trained_as is None else trained_as


def list_methods() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(sorted(_METHODS))


def get_method(name: str) -> Fit:
    """Return a method.

    Args:
        name: One of :func:`list_methods`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name in _METHODS:
        return _METHODS[name]
    nearest = get_close_matches(name, _METHODS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"unknown method {name!r}, known are {', '.join(list_methods())}{hint or '.'} Others come "
        "from --plugin FILE."
    )


def trained_as(name: str) -> str:
    """Return the name of the method whose seeds a method of :func:`list_methods` trains with."""
    return _TRAINED_AS[name]


def _train(trainer: Any, theta: Tensor, x: Tensor, quick: bool, **kwargs: Any) -> Any:
    """Train in silence, for two epochs if it is to be quick, and return the estimator."""
    with quiet():
        trainer.append_simulations(theta, x)
        return trainer.train(**kwargs, **({"max_num_epochs": QUICK_EPOCHS} if quick else {}))


def _epochs(trainer: Any) -> int:
    return int(trainer.summary["epochs_trained"][-1])


_TrainerBuilder = Callable[[Distribution, int], Any]


def _npe(**kwargs: Any) -> _TrainerBuilder:
    return lambda prior, seed: NPE(prior, **silent(), **kwargs)


def _npe_our_flow(prior: Distribution, seed: int) -> Any:
    return _npe(density_estimator=flow_nn(prior))(prior, seed)


def _jeffreys(**kwargs: Any) -> _TrainerBuilder:
    return lambda prior, seed: JeffreysNPE(prior, seed=seed, **silent(), **kwargs)


def _direct(
    build: _TrainerBuilder, members: int = 1, *, flow_alone: bool = False, **kwargs: Any
) -> Fit:
    """Return a method that trains density estimators of the posterior, and mixes them.

    Args:
        build: Function of (prior, seed) that builds a trainer.
        members: Number of estimators.
        flow_alone: Whether the flow of ``JeffreysNPE`` is taken without its proxy.
        kwargs: Arguments of the trainer's ``train``.
    """

    def fit(
        prior: Distribution, theta: Tensor, x: Tensor, *, seed: int, quick: bool = False
    ) -> Fitted:
        trainers = [build(prior, seed + k) for k in range(members)]
        trained = [_train(trainer, theta, x, quick, **kwargs) for trainer in trainers]
        estimators = tuple(each.flow if flow_alone else each for each in trained)
        posteriors = [t.build_posterior(e) for t, e in zip(trainers, estimators, strict=True)]
        return Fitted(
            posterior=posteriors[0] if members == 1 else EnsemblePosterior(posteriors),
            log_prob=_mean_density(estimators),
            epochs=sum(map(_epochs, trainers)),
            summary=trainers[0].summary if members == 1 else {},
            estimators=estimators,
        )

    return fit


def _mean_density(
    estimators: Sequence[ConditionalDensityEstimator],
) -> Callable[[Tensor, Tensor], Tensor]:
    @torch.no_grad()
    def log_prob(theta: Tensor, x: Tensor) -> Tensor:
        values = [estimator.log_prob(theta.unsqueeze(0), x)[0] for estimator in estimators]
        return log_mean_exp(torch.stack(values))

    return log_prob


def _with_mcmc(build: Callable[..., Any]) -> Fit:
    """Return a method that estimates likelihood or ratio and samples by slice sampling."""

    def fit(
        prior: Distribution, theta: Tensor, x: Tensor, *, seed: int, quick: bool = False
    ) -> Fitted:
        trainer = build(prior, **silent())
        _train(trainer, theta, x, quick)
        # Many chains, since a sweep of ten times as many takes twice as long. Each is short, but
        # starts at one of 1,000 draws from the prior, chosen by its potential.
        chains = MCMCPosteriorParameters(
            num_chains=20 if quick else 200,
            warmup_steps=1 if quick else 50,
            thin=1 if quick else 2,
            init_strategy_parameters={"num_candidate_samples": 100 if quick else 1000},
        )
        return Fitted(
            posterior=trainer.build_posterior(posterior_parameters=chains),
            epochs=_epochs(trainer),
            summary=trainer.summary,
            amortised=False,
        )

    return fit


def _vector_field(build: Callable[..., Any]) -> Fit:
    """Return a method that samples by integrating a learnt field.

    Its density takes an integration for each parameter, too slow for thousands.
    """

    def fit(
        prior: Distribution, theta: Tensor, x: Tensor, *, seed: int, quick: bool = False
    ) -> Fitted:
        trainer = build(prior, **silent())
        _train(trainer, theta, x, quick)
        posterior = trainer.build_posterior()
        return Fitted(posterior=posterior, epochs=_epochs(trainer), summary=trainer.summary)

    return fit


register("jeffreys", _direct(_jeffreys()))
register("jeffreys_flow", _direct(_jeffreys(), flow_alone=True), trained_as="jeffreys")
register("jeffreys_fixed", _direct(_jeffreys(objective="fixed")))
register("ml", _direct(_jeffreys(objective="ml")))
register("ml_ensemble", _direct(_jeffreys(objective="ml"), NUM_MEMBERS))
register("npe", _direct(_npe()))
register("npe_nsf", _direct(_npe(density_estimator="zuko_nsf")))
# As the published rows were made: all simulations, up to 10,000, in one batch (the default of
# training_batch_size in sbibm 1.1's sbibm/algorithms/sbi/snpe.py), flows of nflows.
register("npe_sbibm", _direct(_npe(density_estimator="nsf"), training_batch_size=10_000))
register("npe_sbibm_maf", _direct(_npe(density_estimator="maf"), training_batch_size=10_000))
register("npe_our_flow", _direct(_npe_our_flow))
register("npe_ensemble", _direct(_npe(), NUM_MEMBERS))
register("nle", _with_mcmc(NLE))
register("nre", _with_mcmc(NRE))
register("fmpe", _vector_field(FMPE))
register("npse", _vector_field(NPSE))
