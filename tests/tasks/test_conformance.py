"""What every registered task must satisfy."""

import math

import numpy as np
import pytest
import torch
from sbi_jeffreys.tasks import Task, get_task, list_tasks
from scipy.stats import kstest

NAMES = list_tasks()
# Fresh data sets in the calibration test, by what one reference posterior costs.
FRESH = {
    "bernoulli_glm": 30,
    "bernoulli_glm_raw": 30,
    "gaussian_linear": 300,
    "gaussian_linear_uniform": 300,
    "gaussian_mixture": 300,
    "lotka_volterra": 20,
    "sir": 60,
    "slcp": 200,
    "slcp_distractors": 100,
    "two_moons": 300,
}
SLOW = {"lotka_volterra", "sir"}
# The number of modes of the tasks that label them.
MODES = {"gaussian_mixture": 1, "slcp": 4, "slcp_distractors": 4, "two_moons": 2}
# The support of x moves with θ, so that derivative and expectation do not commute.
MOVING_SUPPORT = {"two_moons"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=NAMES)
def task(request) -> Task:
    return get_task(request.param)


def test_simulations(task):
    theta, x = task.simulate(50, generator=seeded())
    assert theta.shape == (50, task.dim_theta)
    assert x.shape == (50, task.dim_x)
    assert theta.dtype == x.dtype == torch.float32
    assert x.isfinite().all()
    assert task.prior.support.check(theta).all()
    assert task.prior.event_shape == (task.dim_theta,)
    assert task.prior.log_prob(theta).isfinite().all()
    assert task.prior.sample((3,)).shape == (3, task.dim_theta)


def test_published_values(task):
    for i in range(1, 11):
        theta, x = task.true_parameters(i), task.observation(i)
        assert theta.shape == (1, task.dim_theta)
        assert x.shape == (1, task.dim_x)
        assert theta.dtype == x.dtype == torch.float32
        assert task.log_posterior_unnormalized(theta, x).isfinite().all()


def test_seeds(task):
    theta, x = task.simulate(5, generator=seeded(1))
    again, x_again = task.simulate(5, generator=seeded(1))
    assert torch.equal(theta, again)
    assert torch.equal(x, x_again)
    other, x_other = task.simulate(5, generator=seeded(2))
    assert not torch.equal(theta, other)
    assert not torch.equal(x, x_other)
    torch.manual_seed(3)
    x = task.simulator(theta)
    torch.manual_seed(3)
    assert torch.equal(x, task.simulator(theta))


def test_own_generator_leaves_the_global_one_alone(task):
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    task.simulate(2, generator=seeded())
    assert torch.equal(torch.rand(1), expected)


def test_batches_of_likelihoods(task):
    theta, x = task.simulate(4, generator=seeded())
    joint = task.log_likelihood(theta, x)
    single = torch.cat([task.log_likelihood(t[None], y) for t, y in zip(theta, x, strict=True)])
    assert joint.shape == (4,)
    assert joint.isfinite().all()
    torch.testing.assert_close(joint, single, rtol=1e-4, atol=1e-3)
    shared = task.log_likelihood(theta, x[:1])
    torch.testing.assert_close(shared[0], joint[0], rtol=1e-4, atol=1e-3)


def test_gradient_of_likelihood(task):
    theta, x = task.simulate(3, generator=seeded())
    theta = theta.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: task.log_likelihood(t, x.double()), (theta,), fast_mode=True
    )


def test_a_batch_of_none(task):
    none = torch.empty(0, task.dim_theta)
    assert task.simulator(none).shape == (0, task.dim_x)
    assert task.log_likelihood(none, task.observation(1)).shape == (0,)
    assert task.log_posterior_unnormalized(none, task.observation(1)).shape == (0,)


def test_numbers_of_numpy(task):
    i, n = np.int64(3), np.int32(5)
    assert torch.equal(task.observation(i), task.observation(3))
    assert torch.equal(
        task.simulate(n, generator=seeded())[1], task.simulate(5, generator=seeded())[1]
    )
    if task.name not in SLOW:
        x = task.observation(3)
        drawn = [task.reference_posterior(o, n, generator=seeded()) for o in (i, x.numpy(), x)]
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2])


def test_posterior_outside_the_prior(task):
    theta = task.true_parameters(1).repeat(2, 1)
    theta[1, 0] = math.nan
    value = task.log_posterior_unnormalized(theta, task.observation(1))
    assert value.isfinite()[0]
    assert value[1] == -math.inf


def test_score_has_mean_zero(task):
    """E ∇ log p(x | θ) = 0 over x ~ p(x | θ): likelihood and simulator belong together."""
    if task.name in MOVING_SUPPORT:
        pytest.skip("the support of x depends on theta")
    n = 1_000 if task.name in SLOW else 4_000
    theta = task.true_parameters(4).double().repeat(n, 1).requires_grad_()
    x = task.simulator(theta.detach(), generator=seeded()).double()
    (score,) = torch.autograd.grad(task.log_likelihood(theta, x).sum(), theta)
    z = score.mean(dim=0) / (score.std(dim=0) / math.sqrt(len(score)))
    # Up to 10 components: |z| > 4 has probability below 1e-3.
    assert z.abs().max() < 4


def test_reference_posterior(task):
    x = task.observation(1)
    theta = task.reference_posterior(1, 100, generator=seeded())
    assert theta.shape == (100, task.dim_theta)
    assert theta.dtype == torch.float32
    assert task.prior.support.check(theta).all()
    assert task.log_posterior_unnormalized(theta, x).isfinite().all()
    # A number and its data are the same to every task; the slow ones need not show it again.
    if task.name not in SLOW:
        assert torch.equal(theta, task.reference_posterior(x[0], 100, generator=seeded()))
    assert len(theta.unique(dim=0)) == 100


@pytest.mark.parametrize(
    "task", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES], indirect=True
)
def test_reference_posterior_is_calibrated(task):
    """The true parameters rank uniformly among posterior draws (Talts et al., 2018).

    The ranked quantities are every θ_j and the log-posterior, which sees correlations (Modrák et
    al., 2023). Threshold: p > 1e-3 / (d + 1), a false alarm once in 1,000 seeds.
    """
    fresh, draws = FRESH.get(task.name, 30), 99
    theta, x = task.simulate(fresh, generator=seeded(10))
    generator, u = seeded(11), np.random.default_rng(12)
    ranks = []
    for t, y in zip(theta, x, strict=True):
        samples = torch.cat((t[None], task.reference_posterior(y, draws, generator=generator)))
        value = torch.column_stack((samples, task.log_posterior_unnormalized(samples, y)))
        ranks.append((value[1:] < value[0]).sum(dim=0).numpy())
    # Uniform jitter makes the discrete rank continuous, as the test wants it.
    uniform = (np.stack(ranks) + u.random((fresh, task.dim_theta + 1))) / (draws + 1)
    p = min(kstest(column, "uniform").pvalue for column in uniform.T)
    assert p > 1e-3 / (task.dim_theta + 1)


def test_modes(task):
    if task.name not in MODES:
        with pytest.raises(NotImplementedError, match=task.name):
            task.modes(task.true_parameters(1))
        return
    theta = task.reference_posterior(1, 500, generator=seeded())
    labels = task.modes(theta)
    assert labels.shape == (500,)
    assert labels.dtype == torch.int64
    counts = labels.bincount()
    assert len(counts) == MODES[task.name]
    # The modes are equally likely where there are several: binomial within 5 standard deviations.
    p = 1 / len(counts)
    assert (counts - 500 * p).abs().max() <= 5 * math.sqrt(500 * p * (1 - p))


ERRORS = [
    (lambda t: t.simulator(torch.zeros(t.dim_theta)), "expects theta of shape"),
    (lambda t: t.simulator(torch.zeros(2, t.dim_theta + 1)), "expects theta of shape"),
    (lambda t: t.log_likelihood(torch.zeros(2, 1, 1), t.observation(1)), "expects theta of shape"),
    (lambda t: t.log_likelihood(t.true_parameters(1), torch.zeros(1)), "expects x of shape"),
    (lambda t: t.log_likelihood(t.true_parameters(1), torch.zeros(2, t.dim_x)), "expects x of"),
    (lambda t: t.simulate(0), "n must be a positive integer, got 0"),
    (lambda t: t.simulate(True), "n must be a positive integer, got True"),
    (lambda t: t.observation(0), "numbered 1 to 10, got 0"),
    (lambda t: t.observation("1"), "numbered 1 to 10, got '1'"),
    (lambda t: t.true_parameters(11), "numbered 1 to 10, got 11"),
    (lambda t: t.reference_posterior(11), "numbered 1 to 10, got 11"),
    (lambda t: t.reference_posterior(1, -3), "n must be a positive integer, got -3"),
    (lambda t: t.reference_posterior(torch.zeros(2, t.dim_x)), "one finite observation of shape"),
    (lambda t: t.reference_posterior(torch.full((t.dim_x,), math.nan)), "one finite observation"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors(task, call, message):
    with pytest.raises(ValueError, match=message):
        call(task)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_moon", "unknown task 'two_moon', known are .*; did you mean 'two_moons'"),
        ("zzz", "unknown task 'zzz', known are .*two_moons$"),
        ("", "unknown task ''"),
    ],
)
def test_unknown_task(name, message):
    with pytest.raises(ValueError, match=message):
        get_task(name)


def test_names_are_sorted_and_belong_to_the_tasks():
    assert list(NAMES) == sorted(NAMES)
    assert all(get_task(name).name == name for name in NAMES)
