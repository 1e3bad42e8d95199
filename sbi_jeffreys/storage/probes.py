"""Log densities at a few points, which tell whether an estimator is the one that was stored."""

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator
from torch import Tensor

from ..estimator import JeffreysEstimator
from ..pool import energy
from ..utils.seeding import seeded
from .distributions import Tensors

__all__ = ["check_probes", "probes_of"]

_PROBES = 5
# Devices, and the order of entries in memory, move the last digits, of thousands of nats too.
_RTOL = _ATOL = 1e-3


@torch.no_grad()
def probes_of(estimator: ConditionalDensityEstimator) -> Tensors:
    """Return points near the estimator's own samples, and its log densities there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBES, *estimator.condition_shape, generator=generator)
    training = estimator.training
    estimator.eval()
    device = next(estimator.parameters()).device
    with seeded(0, device):
        x = x.to(device)
        # As files hold it: the order of entries in memory moves the last digits of densities.
        theta = _flow(estimator).sample(torch.Size((1,)), x).contiguous()
    found = _log_probs(estimator, theta, x)
    estimator.train(training)
    return {"probe_theta": theta, "probe_x": x} | found


def _log_probs(estimator: ConditionalDensityEstimator, theta: Tensor, x: Tensor) -> Tensors:
    found = {"probe_flow": _flow(estimator).log_prob(theta, x)}
    proxy = getattr(estimator, "proxy", None)
    if proxy is not None:
        found["probe_proxy"] = proxy.log_prob_unnormalized(theta, x)
    if isinstance(estimator, JeffreysEstimator) and estimator.stack is not None:
        found["probe_stack"] = energy(estimator, theta, estimator.embed(x), estimator.stack)
    return found


def _flow(estimator: ConditionalDensityEstimator) -> ConditionalDensityEstimator:
    """Return the flow of a joint model: its density needs no draws, which devices differ in."""
    return estimator.flow if isinstance(estimator, JeffreysEstimator) else estimator


@torch.no_grad()
def check_probes(estimator: ConditionalDensityEstimator, tensors: Tensors) -> None:
    """Refuse an estimator that does not reproduce the log densities of the one that was stored.

    Args:
        estimator: What was rebuilt.
        tensors: As :func:`probes_of` returns them, beside others.

    Raises:
        ValueError: If they differ.
    """
    found = _log_probs(estimator, tensors["probe_theta"], tensors["probe_x"])
    for key, value in found.items():
        if not torch.allclose(value, tensors[key], rtol=_RTOL, atol=_ATOL, equal_nan=True):
            raise ValueError(
                f"The rebuilt {key.removeprefix('probe_')} does not reproduce the saved one: its "
                "log densities differ. The builder or the prior is another than the one it was "
                "trained with, or keeps state outside of its state_dict()."
            )
