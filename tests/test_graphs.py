"""Steps that are recorded and replayed are those that would have been taken."""

import copy
import pickle

import pytest
import torch
from recorder import Recording, record
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal, MultivariateNormal

from sbi_jeffreys import JeffreysNPE, graphs
from sbi_jeffreys.draws import Draws
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.graphs import RecordedStep, StepGraphs


@pytest.fixture(autouse=True)
def _seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture
def made(monkeypatch) -> list[RecordedStep]:
    """Record as on a GPU; return what was recorded."""
    made: list[RecordedStep] = []

    class Counted(RecordedStep):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(graphs, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(graphs, "_new_pool", list)
    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_no_waiting", lambda device: Recording())
    monkeypatch.setattr(graphs, "RecordedStep", Counted)
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


def assert_replayed(monkeypatch, made, run, **tolerance) -> None:
    """Compare what a function leaves with and without recordings."""
    found = run()
    assert made
    monkeypatch.setattr(graphs, "_on_gpu", lambda tensor: False)
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    for one, other in zip(found, run(), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


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
def test_objectives(objective, made, monkeypatch):
    """To the bit, but for the factor on gradients that are clipped, which the device rounds."""
    steps = {"clip_max_norm": None}
    run = lambda: weights_of(train(objective=objective, steps=steps))  # noqa: E731
    assert_replayed(monkeypatch, made, run)


@pytest.mark.parametrize("name", ["coupling_nsf", "zuko_nsf", "zuko_maf"])
def test_clipped_gradients(name, made, monkeypatch):
    """A step of Adam forgets the size of the gradient: rounding stays rounding in a few steps."""
    run = lambda: weights_of(train(density_estimator=name, epochs=2))  # noqa: E731
    assert_replayed(monkeypatch, made, run, rtol=0, atol=2e-3)


def test_a_proxy_of_pairs_and_an_embedding_network(made, monkeypatch):
    def run() -> list[Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        build = flow_nn(box(), embedding_net=net)
        steps = {"clip_max_norm": None}
        return weights_of(train(density_estimator=build, proxy="mlp", steps=steps))

    assert_replayed(monkeypatch, made, run)


@pytest.mark.parametrize(
    "prior",
    [
        Independent(LogNormal(torch.zeros(2) - 1, torch.ones(2)), 1),
        MultivariateNormal(torch.zeros(2), torch.eye(2)),
    ],
    ids=["log-normal", "normal"],
)
def test_priors(prior, made, monkeypatch):
    steps = {"clip_max_norm": None}
    assert_replayed(monkeypatch, made, lambda: weights_of(train(prior, steps=steps)))


def test_few_recordings_serve_many_steps(made):
    """With new samples, and with those left over, for batches of 52 rows and one of 51."""
    train(epochs=10)
    assert len(made) == 3


# Of batches of one size, or two; an even or odd number of them; samples for two steps, or three.
@pytest.mark.parametrize(("num", "fraction"), [(223, 0.5), (290, 0.5), (344, 0.5), (290, 0.34)])
def test_steps_of_the_flow_alone(num, fraction, made, monkeypatch):
    """Also where they are recorded first: after the rates have changed, and in a resumed run."""
    monkeypatch.setattr("sbi_jeffreys.steps._WHOLE", 8)

    def run() -> list[Tensor]:
        steps = {"clip_max_norm": None}
        trainer = train(epochs=4, num=num, steps=steps, draws=Draws(fraction=fraction))
        for optimizer in trainer._training.optimizers:
            optimizer.param_groups[0]["lr"] *= 0.5
        options = {"training_batch_size": 50, "clip_max_norm": None, "resume_training": True}
        trainer.train(max_num_epochs=4, **options)
        return weights_of(trainer)

    assert_replayed(monkeypatch, made, run)


def test_other_rates_are_recorded_anew(made, monkeypatch):
    def run() -> list[Tensor]:
        trainer = train(epochs=3, steps={"clip_max_norm": None})
        training = trainer._training
        training.graphs = StepGraphs()
        theta, x = (t[:50] for t in simulations())
        training.estimator.train()
        torch.manual_seed(2)
        for rate in (1e-3, 1e-2):
            for optimizer in training.optimizers:
                optimizer.param_groups[0]["lr"] = rate
            for _ in range(6):
                training.step(theta, x, torch.ones(50, 1))
        return weights_of(trainer)

    assert_replayed(monkeypatch, made, run)


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
def test_resumed_and_copied(made, monkeypatch):
    def run() -> list[Tensor]:
        trainer = train(steps={"clip_max_norm": None})
        twin = pickle.loads(pickle.dumps(copy.deepcopy(trainer)))
        options = {"training_batch_size": 50, "clip_max_norm": None, "resume_training": True}
        twin.train(max_num_epochs=3, **options)
        return weights_of(twin)

    assert_replayed(monkeypatch, made, run)


def test_nothing_stays_recorded_after_training(made):
    trainer = train()
    assert made
    assert not trainer._training.graphs._recorded


def test_who_waits_for_the_device_is_not_recorded(made, monkeypatch):
    def kernel(x: Tensor) -> Tensor:
        return x.new_ones(len(x)) if x.sum().item() > 0 else x.new_zeros(len(x))

    steps = {"calibration_kernel": kernel, "clip_max_norm": None}
    found = weights_of(train(steps=steps))
    assert not made
    monkeypatch.setattr(graphs, "_on_gpu", lambda tensor: False)
    assert all(map(torch.equal, found, weights_of(train(steps=steps))))


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


def test_divergence_is_seen_between_the_two_parts(made):
    """Nothing that is not finite reaches the weights."""
    trainer = train(steps={"calibration_kernel": lambda x: (1 / (x[:, 0] < 90)).nan_to_num(1.0)})
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
    assert all(map(torch.equal, before, weights_of(trainer)))
