"""One call of ``train``, as sbi's trainer hands it on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sbi.inference.trainers._contracts import LossArgs, LossArgsNPE, TrainConfig
from torch import Tensor
from typing_extensions import Self

from ..utils.checks import check_weights
from ..utils.seeding import forked
from .batches import Data, LoaderData, ones

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

    def check_kernel(self, device: str) -> None:
        """Refuse a calibration kernel whose weights no training can use.

        Raises:
            ValueError: See :func:`sbi_jeffreys.utils.checks.check_weights`.
        """
        if not self.weighs:
            return
        rows = (("to train on", self.data), ("that are held out", self.held_out))
        with forked(device):
            for where, each in rows:
                _, x = each.head(_ROWS_TO_WEIGH, device)
                check_weights(self.kernel(x), where, all_zero=len(x) == _ROWS_TO_WEIGH)
