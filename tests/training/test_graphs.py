"""Steps that are recorded and replayed are those that would have been taken."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from recorder import Recording, go_ahead, record
from sbi.utils import BoxUniform, process_prior
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal, MultivariateNormal

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.draws import Draws
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.replay import cuda
from sbi_jeffreys.training import graphs
from sbi_jeffreys.training.graphs import RecordedStep, StepGraphs
from sbi_jeffreys.training.held_out import flow_losses


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def made(request, monkeypatch) -> list[RecordedStep]:
    """Record the second step of a kind; return what was recorded."""
    made: list[RecordedStep] = []

    class Counted(RecordedStep):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(graphs, "_BEFORE", {"cpu": 1})
    monkeypatch.setattr(graphs, "RecordedStep", Counted)
    if request.param == "as on a GPU":
        monkeypatch.setattr(graphs, "on_gpu", lambda device: True)
        go_ahead(monkeypatch)
        monkeypatch.setattr(cuda, "new_pool", list)
        monkeypatch.setattr(cuda, "record", record)
        monkeypatch.setattr(cuda, "no_waiting", lambda device: Recording())
    return made


def simulations(num: int = 230) -> tuple[Tensor, Tensor]:
    """Two positive parameters: 207 rows to train on are batches of 51 and of 52."""
    generator = torch.Generator().manual_seed(1)
    theta = torch.rand(num, 2, generator=generator)
    return theta, theta.square() + 0.05 * torch.randn(num, 2, generator=generator)


def box() -> BoxUniform:
    return BoxUniform(torch.zeros(2), torch.ones(2))


def train(prior=None, epochs=3, steps=None, num=230, **kwargs) -> JeffreysNPE:
    kwargs = {"seed": 3, "show_progress_bars": False} | kwargs
    trainer = JeffreysNPE(prior or box(), **kwargs).append_simulations(*simulations(num))
    trainer.train(max_num_epochs=epochs, training_batch_size=50, **(steps or {}))
    return trainer


def weights_of(trainer: JeffreysNPE) -> list[Tensor]:
    return list(trainer._neural_net.state_dict().values())


def assert_replayed(made, run) -> None:
    """Compare what a function leaves with and without recordings, to the bit."""
    found = run()
    assert made
    with graphs.nothing_recorded():
        assert all(map(torch.equal, found, run()))


def test_a_recording_changes_nothing_and_is_replayed_on_what_is_there():
    x, y = torch.ones(2), torch.zeros(2)
    recording, (total,) = record(lambda: [y.add_(torch.exp(x)).sum()], None, None)
    assert y.tolist() == [0, 0]
    x.fill_(0.0)
    recording.replay()
    assert (y.tolist(), total.item()) == ([1, 1], 2)
    with pytest.raises(RuntimeError, match="waits"), Recording():
        x.sum().item()


@pytest.mark.parametrize("objective", ["dual", "dual_quadratic", "fixed", "ml"])
def test_objectives(objective, made):
    assert_replayed(made, lambda: weights_of(train(objective=objective)))


@pytest.mark.parametrize("name", ["coupling_nsf", "zuko_nsf", "zuko_maf"])
def test_flows(name, made):
    run = lambda: weights_of(train(density_estimator=name, epochs=2))  # noqa: E731
    assert_replayed(made, run)


def test_a_proxy_of_pairs_and_an_embedding_network(made):
    def run() -> list[Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        build = flow_nn(box(), embedding_net=net)
        return weights_of(train(density_estimator=build, proxy="mlp"))

    assert_replayed(made, run)


@pytest.mark.parametrize(
    "prior",
    [
        Independent(LogNormal(torch.zeros(2) - 1, torch.ones(2)), 1),
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
    ],
    ids=["log-normal", "normal"],
)
def test_priors(prior, made):
    assert_replayed(made, lambda: weights_of(train(prior)))


def test_few_recordings_serve_many_steps(made):
    """With new samples, and with those left over, for batches of 52 rows and one of 51."""
    train(epochs=10)
    assert len(made) == 3


# Of batches of one size, or two; an even or odd number of them; samples for two steps, or three.
@pytest.mark.parametrize(("num", "fraction"), [(223, 0.5), (290, 0.5), (344, 0.5), (290, 0.34)])
def test_steps_of_the_flow_alone(num, fraction, made, monkeypatch):
    """Also where they are recorded first: after the rates have changed, and in a resumed run."""
    monkeypatch.setattr("sbi_jeffreys.training.steps._WHOLE", 8)

    def run() -> list[Tensor]:
        trainer = train(epochs=4, num=num, draws=Draws(fraction=fraction))
        for optimizer in trainer._training.optimizers:
            optimizer.lr *= 0.5
        options = {"training_batch_size": 50, "resume_training": True}
        trainer.train(max_num_epochs=4, **options)
        return weights_of(trainer)

    assert_replayed(made, run)


def train_at_two_rates() -> JeffreysNPE:
    """Train, and then for six more steps at each of two rates."""
    trainer = train(epochs=3)
    training = trainer._training
    training.graphs = StepGraphs()
    theta, x = (t[:50] for t in simulations())
    training.estimator.train()
    torch.manual_seed(2)
    for rate in (1e-3, 1e-2):
        for optimizer in training.optimizers:
            optimizer.lr = rate
        for _ in range(6):
            training.step(theta, x, torch.ones(50, 1))
    return trainer


def test_other_rates_are_other_steps(made):
    assert_replayed(made, lambda: weights_of(train_at_two_rates()))


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
def test_resumed_and_copied(made):
    def run() -> list[Tensor]:
        trainer = train()
        twin = pickle.loads(pickle.dumps(copy.deepcopy(trainer)))
        options = {"training_batch_size": 50, "resume_training": True}
        twin.train(max_num_epochs=3, **options)
        return weights_of(twin)

    assert_replayed(made, run)


def test_nothing_stays_recorded_after_training(made):
    trainer = train()
    assert made
    assert not trainer._training.graphs._recorded
    assert trainer._training.graphs._looks == {}


def test_held_out_losses_are_recorded_on_a_cpu(used, monkeypatch):
    asked = []

    def noted(*args) -> tuple[Tensor, Tensor]:
        asked.append(args)
        return flow_losses(*args)

    monkeypatch.setattr("sbi_jeffreys.training.training.flow_losses", noted)
    train(epochs=6)
    # Before the first epoch, after it to be recorded and to be compared, and twice to settle.
    assert len(asked) == 5
    asked.clear()
    train(epochs=6, steps={"calibration_kernel": lambda x: x.new_ones(len(x))})
    assert len(asked) == 1 + 6 + 2


def test_who_waits_for_the_device_is_not_recorded(made):
    def kernel(x: Tensor) -> Tensor:
        return x.new_ones(len(x)) if x.sum().item() > 0 else x.new_zeros(len(x))

    steps = {"calibration_kernel": kernel}
    found = weights_of(train(steps=steps))
    assert not made
    with graphs.nothing_recorded():
        assert all(map(torch.equal, found, weights_of(train(steps=steps))))


class NumpyBox:
    """A prior of numpy's random numbers."""

    seeds = itertools.count()
    mean, variance = torch.full((2,), 0.5), torch.full((2,), 1 / 12)

    def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
        generator = np.random.default_rng(next(self.seeds))
        return torch.as_tensor(generator.random((*shape, 2)), dtype=torch.float32)

    def log_prob(self, theta: Tensor) -> Tensor:
        inside = ((theta >= 0) & (theta <= 1)).all(-1)
        return torch.where(inside, 0.0, -torch.inf)


def numpy_prior():
    bounds = {"lower_bound": torch.zeros(2), "upper_bound": torch.ones(2)}
    return process_prior(NumpyBox(), custom_prior_wrapper_kwargs=bounds)[0]


def numpy_kernel(x: Tensor) -> np.ndarray:
    return np.exp(-(x.numpy() ** 2)[:, 0])


def mean_kernel(x: Tensor) -> float:
    """The same for all rows, whatever their order."""
    return float(np.exp(-x.numpy().mean()))


class CountingKernel:
    """Does something else each time, by what Python remembers."""

    calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.new_full((len(x),), 0.999**self.calls)


class AddingKernel:
    """Adds to a tensor of its own, in place."""

    total = torch.ones(())

    def __call__(self, x: Tensor) -> Tensor:
        return self.total.mul_(0.999).expand(len(x))


@pytest.fixture
def used(monkeypatch) -> list[RecordedStep]:
    """Record the second step of a kind, on a CPU; return what was used in place of steps."""
    used: list[RecordedStep] = []
    find = StepGraphs.find

    def noted(*args, **kwargs) -> RecordedStep | None:
        found = find(*args, **kwargs)
        used.extend([] if found is None else [found])
        return found

    monkeypatch.setattr(graphs, "_BEFORE", {"cpu": 1})
    monkeypatch.setattr(StepGraphs, "find", noted)
    return used


def test_other_rates_are_new_steps_of_the_optimizers_alone_on_a_cpu(used, monkeypatch):
    rates = []
    record_descent = RecordedStep.record_descent

    def noted(self, steps) -> None:
        record_descent(self, steps)
        rates.append(steps.rates[0])

    monkeypatch.setattr(RecordedStep, "record_descent", noted)
    train_at_two_rates()
    # With new samples, and with those left over: in 12 steps the first of each is none.
    assert rates[-4:] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert len(set(map(id, used[-10:]))) == 2


OWN = [numpy_kernel, mean_kernel, CountingKernel(), AddingKernel(), NumpyBox]


def train_with(own) -> None:
    """Train with a kernel, or a prior, of a user's own."""
    if own is NumpyBox:
        train(numpy_prior())
    else:
        train(steps={"calibration_kernel": own})


@pytest.mark.parametrize("own", OWN)
def test_code_of_users_is_not_recorded_on_a_cpu(own, used):
    train_with(own)
    assert not used


@pytest.mark.parametrize("own", OWN)
def test_what_is_done_outside_of_torch_would_be_found_out(own, used, monkeypatch):
    """Also by a CPU, which waits for nothing."""
    asked = []
    monkeypatch.setattr(graphs, "_is_known", lambda steps: asked.append(steps) or True)
    train_with(own)
    assert asked
    assert not used


def test_wrong_gradients_of_the_right_norm_are_found_out(used, monkeypatch):
    gradient = RecordedStep.gradient

    def wrong(self, *args) -> Tensor:
        found = gradient(self, *args)
        self.gradients.of[0][0].neg_()
        return found

    monkeypatch.setattr(RecordedStep, "gradient", wrong)
    train()
    assert not used


class Counting(nn.Module):
    """Does something else each time, by what Python remembers."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.001 * self.calls)


@pytest.mark.parametrize(("net", "known"), [(Counting, False), (nn.Identity, True)])
def test_networks_of_others_are_not_recorded_on_a_cpu(net, known, used):
    train(density_estimator=flow_nn(box(), embedding_net=net()))
    assert bool(used) == known


def test_who_looks_for_anomalies_sees_each_operation(used, monkeypatch):
    # The mode itself makes each of them a hundred times as slow.
    monkeypatch.setattr(torch, "is_anomaly_enabled", lambda: True)
    train()
    assert not used


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_recording_that_fails_leaves_nothing(error, made, monkeypatch):
    """Errors leave steps that are not recorded; Ctrl-C is the user's."""
    training = train()._training
    theta, x = (t[:50] for t in simulations())
    training.graphs = StepGraphs()
    training.estimator.train()
    training.queue.sets = []
    for _ in range(2):
        training.step(theta, x, torch.ones(50, 1))

    def fail(function, pool, device):
        function()
        raise error

    monkeypatch.setattr(graphs, "_record", fail)
    made.clear()
    if error is RuntimeError:
        training.step(theta, x, torch.ones(50, 1))
        assert len(training.queue.sets) == 1
        assert not training.graphs.possible
    else:
        with pytest.raises(error):
            training.step(theta, x, torch.ones(50, 1))
        assert not training.queue.sets
    assert not made


def test_divergence_is_seen(made):
    """On a CPU between the two parts: nothing that is not finite reaches the weights.

    A GPU has gone on by then, and the run puts the best weights back (`test_training.py`).
    """
    trainer = train()
    training = trainer._training
    theta, x = (t[:50].clone() for t in simulations())
    for _ in range(4):
        training.step(theta, x, torch.ones(50, 1))
    assert training.graphs._recorded
    made.clear()
    before = [w.clone() for w in weights_of(trainer)]
    x[0] = torch.nan
    with pytest.raises(RuntimeError, match="became nan"):
        training.step(theta, x, torch.ones(50, 1))
    assert not made
    assert graphs.on_gpu(theta.device) or all(map(torch.equal, before, weights_of(trainer)))
