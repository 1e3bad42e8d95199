"""Nothing is left on the CPU that should be on the device, and the numbers are those of the CPU."""

import pytest
import torch
from elsewhere import elsewhere, here, waits
from sbi.utils import BoxUniform, MultipleIndependent
from torch import Tensor, nn
from torch.distributions import Exponential, Independent, LogNormal, MultivariateNormal, Normal

from sbi_jeffreys import JeffreysNPE, load, save
from sbi_jeffreys.diagnostics import diagnose_proxy
from sbi_jeffreys.flows import flow_nn
from sbi_jeffreys.training import second_proxy

EPOCHS = 1


@pytest.fixture
def simulations() -> tuple[Tensor, Tensor]:
    """Two parameters of which x, of one sign, knows the size: nothing that a flow starts with."""
    theta = 2 * torch.rand(160, 2) - 1
    return theta, theta.square() + 0.05 * torch.randn(160, 2).abs()


def box(device: str) -> BoxUniform:
    return BoxUniform(-torch.ones(2), torch.ones(2), device=device)


def log_normal(device: str) -> Independent:
    scale = torch.ones(2, device=device)
    return Independent(LogNormal(0 * scale, scale), 1)


def several(device: str) -> MultipleIndependent:
    one = torch.ones(1, device=device)
    return MultipleIndependent([Normal(0 * one, one), Exponential(one)], device=device)


def normal(device: str) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(2, device=device), torch.eye(2, device=device))


def on_both(run, monkeypatch):
    """Return what a function of the device gives on the CPU and elsewhere, as plain tensors."""
    expected = run("cpu")
    with elsewhere(monkeypatch) as device:
        found = [here(value) for value in run(device)]
    return found, expected


def assert_same(run, monkeypatch):
    for found, expected in zip(*on_both(run, monkeypatch), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def train(simulations, device, prior=box, *, steps=None, **kwargs) -> JeffreysNPE:
    trainer = JeffreysNPE(prior(device), seed=3, device=device, show_progress_bars=False, **kwargs)
    trainer.append_simulations(*(t.to(device) for t in simulations)).train(
        max_num_epochs=EPOCHS, training_batch_size=50, **(steps or {})
    )
    return trainer


def weights_of(trainer: JeffreysNPE) -> list[Tensor]:
    return list(trainer._neural_net.state_dict().values())


def test_the_device_refuses_what_a_gpu_refuses(monkeypatch):
    with elsewhere(monkeypatch) as device:
        there = torch.ones(2, device=device)
        assert here(there + torch.ones(())).tolist() == [2, 2]
        assert there[torch.tensor([0])].device.type == device
        assert there.to("cpu").tolist() == there.tolist() == [1, 1]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(2)
        with pytest.raises(RuntimeError, match="two devices"):
            torch.ones(2)[torch.tensor([0], device=device)]
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("objective", ["dual", "fixed", "ml"])
def test_objectives(objective, simulations, monkeypatch):
    assert_same(lambda d: weights_of(train(simulations, d, objective=objective)), monkeypatch)


# Not "mdn", whose indices are Python's ranges: the values of these are nowhere.
@pytest.mark.parametrize("name", ["zuko_nsf", "maf"])
def test_estimators(name, simulations, monkeypatch):
    assert_same(lambda d: weights_of(train(simulations, d, density_estimator=name)), monkeypatch)


def test_a_proxy_of_pairs(simulations, monkeypatch):
    assert_same(lambda d: weights_of(train(simulations, d, proxy="mlp")), monkeypatch)


def _levels(theta):
    return torch.poisson((1 + theta[:, [0, 0, 1]]).exp())


def _many_bits(theta):
    return torch.bernoulli(torch.sigmoid(2 * theta @ torch.randn(2, 30)))


def _gaps(theta):
    x = theta.repeat(1, 3) + 0.1 * torch.randn(len(theta), 6)
    return torch.where(torch.rand(x.shape) < 0.4 * torch.sigmoid(2 * theta[:, :1]), -999.0, x)


def _series(theta):
    time = torch.linspace(-1, 1, 40)
    return theta @ torch.stack((time, time**2)) + 0.2 * torch.randn(len(theta), 40)


@pytest.mark.filterwarnings("ignore:Data")
@pytest.mark.filterwarnings("ignore:Parameters")
@pytest.mark.parametrize("data_device", [None, "cpu"])
@pytest.mark.parametrize("simulate", [_levels, _many_bits, _gaps, _series])
def test_what_is_chosen_of_x(simulate, data_device, monkeypatch):
    """Levels, statistics, what fills gaps, components: found on the CPU, evaluated elsewhere."""
    theta = 2 * torch.rand(240, 2) - 1
    data = theta, simulate(theta)

    def run(device):
        trainer = JeffreysNPE(box(device), seed=3, device=device, show_progress_bars=False)
        trainer.append_simulations(*(t.to(device) for t in data), data_device=data_device)
        estimator = trainer.train(max_num_epochs=1, training_batch_size=50)
        theta, x = (t[:3].to(device) for t in data)
        torch.manual_seed(5)
        found = estimator.log_prob(theta, x).detach(), estimator.sample(torch.Size((4,)), x)
        return [*weights_of(trainer), *found]

    for found, expected in zip(*on_both(run, monkeypatch), strict=True):
        # Forms are fitted on the CPU in both; sums on the device may be of another order.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_embedding_network(simulations, monkeypatch):
    def run(device):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        build = flow_nn(box(device), embedding_net=net)
        return weights_of(train(simulations, device, density_estimator=build))

    assert_same(run, monkeypatch)


def test_a_prior_on_one_side(simulations, monkeypatch):
    positive = simulations[0].exp(), simulations[1]
    assert_same(lambda d: weights_of(train(positive, d, log_normal)), monkeypatch)


def test_without_prior(simulations, monkeypatch):
    assert_same(lambda d: weights_of(train(simulations, d, lambda _: None)), monkeypatch)


@pytest.mark.parametrize("data_device", [None, "cpu"])
@pytest.mark.filterwarnings("ignore:(Data x|Parameters theta) has device:UserWarning")
def test_simulations_from_the_cpu(data_device, simulations, monkeypatch):
    held_out = tuple(t[:20] for t in simulations)

    def run(device):
        trainer = JeffreysNPE(box(device), seed=3, device=device, show_progress_bars=False)
        trainer.append_simulations(*simulations, data_device=data_device)
        trainer.train(max_num_epochs=1, validation_data=held_out)
        trainer.train(max_num_epochs=3, resume_training=True)
        return weights_of(trainer)

    assert_same(run, monkeypatch)


@pytest.mark.parametrize(
    "steps",
    [
        {"calibration_kernel": lambda x: (x < 0.5).all(dim=1).float()},
        {"dataloader_kwargs": {"drop_last": False}},
    ],
    ids=["kernel", "loaders"],
)
def test_options_of_train(steps, simulations, monkeypatch):
    assert_same(lambda d: weights_of(train(simulations, d, steps=steps)), monkeypatch)


def test_later_rounds(simulations, monkeypatch):
    def run(device):
        trainer = train(simulations, device)
        x_o = torch.full((1, 2), 0.3, device=device)
        proposal = trainer.build_posterior().set_default_x(x_o)
        torch.manual_seed(2)
        theta = proposal.sample((100,), show_progress_bars=False)
        x = theta.square() + 0.05 * torch.randn_like(theta)
        trainer.append_simulations(theta, x, proposal).train(max_num_epochs=1)
        return weights_of(trainer)

    assert_same(run, monkeypatch)


@pytest.mark.parametrize("name", ["coupling_nsf", "maf"])
def test_the_pool(name, simulations, monkeypatch):
    """Draws, densities and their gradient, and what is measured of the proxy."""

    def run(device):
        trainer = train(simulations, device, density_estimator=name)
        estimator, posterior = trainer._neural_net, trainer.build_posterior()
        estimator.weight = 0.5
        x = torch.tensor([[0.3, 0.4], [0.1, 0.9]], device=device)
        torch.manual_seed(4)
        samples = posterior.sample((20,), x=x[:1], show_progress_bars=False)
        batched = posterior.sample_batched((5,), x=x, show_progress_bars=False)
        theta = samples.clone().requires_grad_()
        log_prob = estimator.log_prob(theta, x[:1])
        log_prob.sum().backward()
        found = diagnose_proxy(estimator, batched[0], x, num_draws=16)
        densities = posterior.log_prob_batched(batched, x=x, norm_posterior=False)
        return [samples, batched, log_prob.detach(), theta.grad, densities, *found]

    assert_same(run, monkeypatch)


@pytest.mark.parametrize("prior", [box, log_normal, several, normal])
def test_a_step_waits_for_the_device_once(prior, simulations, monkeypatch):
    """For the objective, with the norms of the gradients and what is reported."""
    simulations = simulations[0].abs(), simulations[1]
    with elsewhere(monkeypatch) as device:
        training = train(simulations, device, prior)._training
        theta, x = (t[:50].to(device) for t in simulations)
        training.estimator.train()
        masks = torch.ones(50, 1, device=device)
        # The flow is sampled in every other step.
        for _ in range(2):
            waits.clear()
            training.step(theta, x, masks)
            assert len(waits) == 1, waits


def test_files_know_no_device(simulations, monkeypatch, tmp_path):
    """What was trained elsewhere is loaded on the CPU, and the other way round."""
    on_cpu = train(simulations, "cpu")
    save(on_cpu.build_posterior(), tmp_path / "cpu")
    theta, x = torch.zeros(4, 1, 2) + 0.1, torch.full((1, 2), 0.3)
    expected = on_cpu._neural_net.log_prob(theta, x)
    with elsewhere(monkeypatch) as device:
        save(train(simulations, device).build_posterior(), tmp_path / "elsewhere")
        prior = box(device)
        there = load(tmp_path / "cpu", prior=prior, device=device)
        assert prior.base_dist.low.device.type == device  # the user's is left where it is
        found = there.posterior_estimator.log_prob(theta.to(device), x.to(device))
        assert torch.equal(here(found), expected)
    loaded = load(tmp_path / "elsewhere", prior=box("cpu"))
    assert torch.equal(loaded.posterior_estimator.log_prob(theta, x), expected)


def test_the_critic_of_the_likelihood(simulations, monkeypatch):
    monkeypatch.setattr(second_proxy, "_STEPS", 20)
    # Whatever it has learnt counts.
    monkeypatch.setattr(second_proxy, "_PROGRESS", -10.0)

    def run(device):
        training = train(simulations, device)._training
        network = training.estimator.proxy.network
        theta, x = (t.to(device) for t in simulations)
        context = training.estimator.embed(x).detach()
        rows = theta[:100], context[:100]
        torch.manual_seed(5)
        critic = second_proxy._train_critic(network, rows, (theta[100:], context[100:]))
        gains = second_proxy._gains(critic, training.estimator, theta[100:], context[100:])
        return [*critic.layers.state_dict().values(), gains]

    assert_same(run, monkeypatch)
