"""Small trainers, for tests of what users pass and meet."""

import torch
from sbi.utils import BoxUniform
from torch import Tensor, nn

from sbi_jeffreys import JeffreysNPE
from sbi_jeffreys.training.record import EPOCH_KEYS
from sbi_jeffreys.utils.quiet import QuietTracker

__all__ = [
    "NO_MEAN",
    "NO_SUPPORT",
    "PRIOR",
    "THETA",
    "Shaking",
    "X",
    "make",
    "usable",
    "weights_of",
    "without_durations",
]

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
THETA = 2 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) - 1
X = THETA + 0.2 * torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
# What stands for the missing prior in sbi has neither.
NO_SUPPORT = "ignore:The passed prior has no support property"
NO_MEAN = "ignore:The passed discrete prior has no mean or stddev attribute"


def make(density_estimator="mdn", **kwargs) -> JeffreysNPE:
    defaults = {"prior": PRIOR, "seed": 0, "show_progress_bars": False, "tracker": QuietTracker()}
    return JeffreysNPE(density_estimator=density_estimator, **(defaults | kwargs))


def usable(trainer: JeffreysNPE) -> bool:
    """Whether the trained weights are finite and make a posterior."""
    posterior = trainer.build_posterior()
    finite = all(p.isfinite().all() for p in trainer._neural_net.parameters())
    return finite and bool(posterior.potential(THETA[:3], x=X[:1]).isfinite().all())


def weights_of(trainer: JeffreysNPE) -> Tensor:
    return nn.utils.parameters_to_vector(trainer._neural_net.parameters())


def without_durations(trainer: JeffreysNPE) -> dict[str, Tensor]:
    """Return the record as tensors; NaN marks what was not measured."""
    return {k: torch.tensor(trainer.summary[k]) for k in EPOCH_KEYS if k != "epoch_durations_sec"}


class Shaking(QuietTracker):
    """Tracker that spoils the flow's weights after the second epoch: the third is a bad one."""

    trainer: JeffreysNPE
    scale = 0.3

    def log_metrics(self, metrics, step=None):
        if step != 1:
            return
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.trainer._neural_net.flow.parameters():
                parameter.add_(self.scale * torch.randn(parameter.shape, generator=generator))
