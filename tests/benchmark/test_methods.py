"""Every method fits, samples and states its density, on almost no data."""

import math

import pytest
import torch
from sbi_jeffreys.tasks import get_task

from sbi_jeffreys.benchmark.methods import Fitted, get_method, list_methods, register

TASK = get_task("two_moons")
# Slice sampling takes seconds before the first sample.
MCMC = ("nle", "nre")
WITH_DENSITY = {
    "jeffreys": 1,
    "jeffreys_fixed": 1,
    "jeffreys_flow": 1,
    "ml": 1,
    "ml_ensemble": 5,
    "npe": 1,
    "npe_ensemble": 5,
    "npe_nsf": 1,
    "npe_our_flow": 1,
    "npe_sbibm": 1,
    "npe_sbibm_maf": 1,
}
WITHOUT_DENSITY = ("fmpe", "npse", *MCMC)


@pytest.fixture(scope="module")
def simulations():
    return TASK.simulate(60, generator=torch.Generator().manual_seed(0))


def fit(name, simulations):
    torch.manual_seed(1)
    return get_method(name)(TASK.prior, *simulations, seed=2, quick=True)


def test_these_are_all_methods():
    ours = [name for name in list_methods() if not name.startswith("test_")]
    assert ours == sorted([*WITH_DENSITY, *WITHOUT_DENSITY])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WITH_DENSITY)
def test_density(name, simulations):
    fitted = fit(name, simulations)
    members = WITH_DENSITY[name]
    assert len(fitted.estimators) == members
    assert fitted.amortised
    # sbi trains an epoch more than it is asked to.
    assert 2 * members <= fitted.epochs <= 3 * members
    theta, x = simulations
    values = [e.log_prob(theta[None], x)[0] for e in fitted.estimators]
    expected = torch.stack(values).exp().mean(dim=0).log()
    torch.testing.assert_close(fitted.log_prob(theta, x), expected.detach())
    samples = fitted.posterior.sample((20,), x=x[:1], show_progress_bars=False)
    assert samples.shape == (20, 2)


def test_the_flow_alone_is_that_of_the_pool(simulations):
    pool, alone = (fit(name, simulations).estimators[0] for name in ("jeffreys", "jeffreys_flow"))
    assert not hasattr(alone, "proxy")
    theta, x = simulations
    assert torch.equal(alone.log_prob(theta[None], x), pool.flow.log_prob(theta[None], x))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "steps"), [("npe_sbibm", 1), ("npe_sbibm_maf", 1), ("npe", 2)])
def test_as_sbibm_an_epoch_is_one_step(name, steps, monkeypatch):
    taken = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda *args, **kwargs: taken.append(step(*args, **kwargs))
    )
    # 450 of 500 to train on, of which sbi's loader drops what fills no batch of 200.
    fitted = fit(name, TASK.simulate(500, generator=torch.Generator().manual_seed(0)))
    assert len(taken) == steps * fitted.epochs


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in MCMC else ()) for n in WITHOUT_DENSITY],
)
def test_without_density(name, simulations):
    fitted = fit(name, simulations)
    assert fitted.log_prob is None
    assert fitted.amortised == (name not in MCMC)
    samples = fitted.posterior.sample((20,), x=simulations[1][:1], show_progress_bars=False)
    assert samples.shape == (20, 2)
    assert torch.isfinite(TASK.prior.log_prob(samples)).all()


def test_registering():
    def method(prior, theta, x, *, seed, quick=False):
        return Fitted(None, log_prob=lambda theta, x: torch.full((len(theta),), -math.log(4)))

    register("test_mine-1.0+x", method)
    assert get_method("test_mine-1.0+x") is method


@pytest.mark.parametrize("name", ["", "a--b", "a/b", "a b", "-a", "a-"])
def test_names_that_no_file_could_have_are_refused(name):
    with pytest.raises(ValueError, match="must consist of letters"):
        register(name, lambda: None)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="must be a function, got int"):
        register("test_number", 3)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'jefreys', known are .*npe.*did you mean 'jeffreys'"):
        get_method("jefreys")
