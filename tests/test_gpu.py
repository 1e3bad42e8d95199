"""On a GPU: what trains there trains, says what the CPU says, and its files know no device.

Skipped where there is none. `trainer/test_device.py` plays a GPU everywhere else.
"""

import copy

import pytest
import torch
from sbi.utils import BoxUniform
from torch import Tensor, nn
from torch.distributions import Independent, LogNormal, MultivariateNormal

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.layers.usable import usable
from sbi_jeffreys.training import graphs
from sbi_jeffreys.training.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def simulations(num: int = 2000) -> tuple[Tensor, Tensor]:
    """Two parameters of which x, of one sign, knows the size."""
    generator = torch.Generator().manual_seed(1)
    theta = 2 * torch.rand(num, 2, generator=generator) - 1
    return theta, theta.square() + 0.05 * torch.randn(num, 2, generator=generator).abs()


def box(device: str) -> BoxUniform:
    return BoxUniform(-torch.ones(2), torch.ones(2), device=device)


def train(device: str = "cuda", num: int = 2000, **kwargs) -> JeffreysNPE:
    epochs = kwargs.pop("epochs", 6)
    options = {"seed": 3, "device": device, "show_progress_bars": False} | kwargs
    trainer = JeffreysNPE(box(device), **options)
    trainer.append_simulations(*(t.to(device) for t in simulations(num)))
    trainer.train(max_num_epochs=epochs)
    return trainer


def test_splines_are_kernels():
    """Not operations of torch, which would do instead and take ten times as long."""
    pytest.importorskip("triton")
    assert usable(torch.zeros(1, device="cuda"))


@pytest.mark.parametrize("name", ["coupling_nsf", "zuko_nsf", "maf", "mdn"])
@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_training_gains(name, objective):
    losses = train(density_estimator=name, objective=objective).summary["validation_loss"]
    assert losses[-1] < losses[0]


def test_maximum_likelihood_gives_the_losses_of_the_cpu():
    """Its only random numbers are the order of the rows, which both draw alike."""
    found, expected = (
        torch.tensor(train(d, objective="ml", epochs=4).summary["validation_loss"])
        for d in ("cuda", "cpu")
    )
    # Rounding, after 36 steps of which each multiplies what the one before has left.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_a_seed_gives_the_same_losses():
    first, second = (torch.tensor(train(epochs=3).summary["validation_loss"]) for _ in range(2))
    # Sums by atomic additions have no order: not to the bit.
    torch.testing.assert_close(first, second, rtol=0, atol=0.02)


def test_the_posterior_is_the_one_that_a_cpu_loads(tmp_path):
    trainer = train()
    posterior = trainer.build_posterior()
    save(posterior, tmp_path / "posterior")
    x = torch.tensor([[0.3, 0.4]])
    theta = posterior.sample((500,), x=x.cuda(), show_progress_bars=False)
    assert theta.is_cuda
    assert theta.abs().max() <= 1
    loaded = load(tmp_path / "posterior", prior=box("cpu")).posterior_estimator
    assert loaded.weight == trainer._neural_net.weight
    # The flow's density: the pool's normaliser is estimated from draws of the device's own.
    found = trainer._neural_net.flow.log_prob(theta.unsqueeze(1), x.cuda()).cpu()
    expected = loaded.flow.log_prob(theta.cpu().unsqueeze(1), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
def test_later_rounds_and_a_copy():
    trainer = train(num=500, epochs=2)
    proposal = trainer.build_posterior().set_default_x(torch.full((1, 2), 0.3, device="cuda"))
    theta = proposal.sample((200,), show_progress_bars=False)
    x = theta.square() + 0.05 * torch.randn_like(theta).abs()
    trainer.append_simulations(theta, x, proposal).train(max_num_epochs=2)
    twin = copy.deepcopy(trainer)
    assert twin.summary["validation_loss"] == trainer.summary["validation_loss"]


@pytest.fixture
def recorded(monkeypatch) -> list[graphs.RecordedStep]:
    """What is recorded during a test."""
    made: list[graphs.RecordedStep] = []
    real = graphs.RecordedStep.__init__

    def counted(self, *args, **kwargs) -> None:
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(graphs.RecordedStep, "__init__", counted)
    return made


def test_a_convolution_with_batch_normalisation(recorded):
    """x of 1,024 entries, of which the parameters are the brightness of two stripes."""
    theta, _ = simulations(1000)
    x = torch.randn(1000, 1, 32, 32)
    x[:, 0, 4], x[:, 0, 20] = x[:, 0, 4] + theta[:, :1], x[:, 0, 20] + theta[:, 1:]
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8)
    )
    net(x[:2])
    build = flow_nn(box("cuda"), embedding_net=net)
    trainer = JeffreysNPE(box("cuda"), build, seed=3, device="cuda", show_progress_bars=False)
    trainer.append_simulations(theta.cuda(), x.cuda()).train(max_num_epochs=8)
    losses = trainer.summary["validation_loss"]
    assert recorded
    assert losses[-1] < losses[0]


PRIORS = {
    "box": lambda: box("cuda"),
    "log-normal": lambda: Independent(
        LogNormal(torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")), 1
    ),
    "normal": lambda: MultivariateNormal(
        torch.zeros(2, device="cuda"), torch.eye(2, device="cuda")
    ),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("objective", ["dual", "ml"])
def test_recorded_steps_are_those_that_would_have_been_taken(prior, objective, recorded):
    """The random numbers too, over 36 steps; sums by atomic additions may be rounded otherwise.

    Gradients are not clipped: what is rounded otherwise in their norm is in all of them then.
    """

    def run() -> tuple[Tensor, Tensor]:
        trainer = JeffreysNPE(
            PRIORS[prior](), objective=objective, seed=3, device="cuda", show_progress_bars=False
        )
        theta, x = simulations()
        theta = theta.abs() if prior == "log-normal" else theta
        trainer.append_simulations(theta.cuda(), x.cuda())
        trainer.train(max_num_epochs=4, clip_max_norm=None)
        parameters = [p.detach().flatten() for p in trainer._neural_net.parameters()]
        return torch.tensor(trainer.summary["validation_loss"]), torch.cat(parameters)

    losses, weights = run()
    assert recorded
    recorded.clear()
    with graphs.nothing_recorded():
        expected, expected_weights = run()
    assert not recorded
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-3)
    assert (weights - expected_weights).abs().mean() < 1e-4


def test_steps_of_the_flow_alone_and_a_resumed_run(recorded, monkeypatch):
    """Recorded before and after the steps that leave samples to others; batches of two sizes."""
    monkeypatch.setattr("sbi_jeffreys.training.steps._WHOLE", 8)

    def run() -> Tensor:
        trainer = JeffreysNPE(box("cuda"), seed=3, device="cuda", show_progress_bars=False)
        trainer.append_simulations(*(t.cuda() for t in simulations(1157)))
        for resume in (False, True):
            trainer.train(max_num_epochs=4, clip_max_norm=None, resume_training=resume)
        return torch.tensor(trainer.summary["validation_loss"])

    found = run()
    assert recorded
    with graphs.nothing_recorded():
        expected = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_steps_after_the_best_weights_have_come_back(recorded, monkeypatch):
    """Recordings go on to read what they have read, where it was; other memory is written over."""
    real = Training.judge

    def judge(self, *losses) -> bool:
        return real(self, *losses) or self.epoch in (2, 4)

    monkeypatch.setattr(Training, "judge", judge)

    def run() -> Tensor:
        trainer = JeffreysNPE(box("cuda"), seed=3, device="cuda", show_progress_bars=False)
        trainer.append_simulations(*(t.cuda() for t in simulations(1157)))
        trainer.train(max_num_epochs=7, clip_max_norm=None)
        return torch.tensor(trainer.summary["validation_loss"])

    found = run()
    assert recorded
    with graphs.nothing_recorded():
        expected = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_who_waits_for_the_device_is_not_recorded(recorded):
    def kernel(x: Tensor) -> Tensor:
        return x.new_ones(len(x)) if x.sum().item() > 0 else x.new_zeros(len(x))

    trainer = JeffreysNPE(box("cuda"), seed=3, device="cuda", show_progress_bars=False)
    trainer.append_simulations(*(t.cuda() for t in simulations()))
    trainer.train(max_num_epochs=3, calibration_kernel=kernel)
    assert not recorded
    assert torch.rand(2, device="cuda").isfinite().all()


def test_memory_comes_back(recorded):
    def reserved() -> int:
        recorded.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    trainer = train(epochs=2)
    assert recorded
    before = reserved()
    for _ in range(3):
        trainer = train(epochs=2)
    # A segment of torch's allocator is of 2 MiB or of 20.
    assert reserved() <= before + 2**25
    assert trainer.summary["validation_loss"]
