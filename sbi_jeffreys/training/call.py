"""One call of ``train``, as sbi's trainer hands it on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sbi.inference.trainers._contracts import LossArgs, LossArgsNPE, TrainConfig
from torch import Tensor
from typing_extensions import Self

from ..utils.checks import check_weights
from ..utils.seeding import forked
from .batches import Data, LoaderData, PerRow, ones

__all__ = ["Call"]

# Simulations, to train on and held out, whose weights are looked at.
_ROWS_TO_WEIGH = 10_000


@dataclass(frozen=True)
class Call:
    """What is trained on, what is held out, and how."""

    data: Data | LoaderData
    held_out: Data | LoaderData
    config: TrainConfig
    kernel: Callable[[Tensor], Tensor]
    force_first_round_loss: bool

    @classmethod
    def of(cls, data: Any, held_out: Any, config: TrainConfig, loss_args: LossArgs | None) -> Self:
        """Return the call that sbi has made these of."""
        assert isinstance(loss_args, LossArgsNPE)
        kernel, first = loss_args.calibration_kernel, loss_args.force_first_round_loss
        assert kernel is not None
        return cls(data, held_out, config, kernel, first)

    @property
    def weighs(self) -> bool:
        """Whether simulations have weights."""
        return self.kernel is not ones

    def with_checked_kernel(self, device: str) -> Self:
        """Return the call with weights whose mean over what is trained on is one.

        Prices, progress and norms are numbers of nats: only ratios of weights may count.

        Raises:
            ValueError: If no training can use the weights: see
                :func:`sbi_jeffreys.utils.checks.check_weights`.
        """
        if not self.weighs:
            return self
        assert isinstance(self.kernel, PerRow)
        with forked(device):
            mean = self._checked_mean(self.data, "to train on", device)
            self._checked_mean(self.held_out, "that are held out", device)
        # All of so many rows may have weights of zero, and others not.
        return replace(self, kernel=self.kernel.times(1 / (mean or 1.0)))

    def _checked_mean(self, rows: Data | LoaderData, where: str, device: str) -> float:
        """Return the mean weight of the first rows, which must be weights."""
        _, x = rows.head(_ROWS_TO_WEIGH, device)
        weights = self.kernel(x)
        check_weights(weights, where, all_zero=len(x) == _ROWS_TO_WEIGH)
        return weights.to("cpu", torch.float64).mean().item()
