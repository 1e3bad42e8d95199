"""Where batches come from: the stored simulations by index, or a loader of torch's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Data", "LoaderData", "PerRow", "ones", "through_loaders"]


def ones(x: Tensor) -> Tensor:
    """Calibration kernel that weighs all rows alike: 1 for each, shape (n,)."""
    return x.new_ones(len(x))


class PerRow:
    """A user's calibration kernel, with one weight for each row.

    Args:
        kernel: Function of x (n, *event); what it returns may be a number or of shape (n,).
        factor: What its weights are multiplied by.
    """

    def __init__(self, kernel: Callable[[Tensor], Any], factor: float = 1.0) -> None:
        self._kernel, self._factor = kernel, factor

    def times(self, factor: float) -> "PerRow":
        """Return the kernel with weights that are so many times as large."""
        return PerRow(self._kernel, factor * self._factor)

    def __call__(self, x: Tensor) -> Tensor:
        """Return weights, shape (n,), of data (n, *event).

        Raises:
            ValueError: If the kernel's weights have another shape.
        """
        weights = self._factor * torch.as_tensor(self._kernel(x), dtype=x.dtype, device=x.device)
        if weights.dim() == 0:
            return weights.expand(len(x))
        if weights.shape != (len(x),):
            raise ValueError(
                f"calibration_kernel returned shape {tuple(weights.shape)} for {len(x)} x: return "
                f"one weight for each, shape ({len(x)},)."
            )
        return weights


@dataclass
class Data:
    """Rows of the stored simulations.

    Like a loader of torch's it can be iterated, once through in a new order, and has a length.

    Args:
        theta: Parameters, shape (n, d).
        x: Data, shape (n, *event).
        masks: 1 where theta is from the prior, shape (n, 1).
        rows: Which of them; kept where theta is.
        batch_size: Rows of a batch, at least, where nothing else is said.
    """

    theta: Tensor
    x: Tensor
    masks: Tensor
    rows: Tensor
    batch_size: int = 200

    def __post_init__(self) -> None:
        self.rows = self.rows.to(self.theta.device)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield (theta, x, masks) where they are stored."""
        return self.batches(self.batch_size, str(self.theta.device), shuffle=True)

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._num_batches(self.batch_size)

    def _num_batches(self, size: int) -> int:
        return max(1, len(self.rows) // size)

    def batches(self, size: int, device: str, *, shuffle: bool) -> Iterator[tuple[Tensor, ...]]:
        """Yield (theta, x, masks) of nearly equal size, by index: nothing is copied twice."""
        num = len(self.rows)
        order = self.rows
        if shuffle:
            order = order[torch.randperm(num).to(order.device)]
        for rows in order.tensor_split(self._num_batches(size)):
            yield tuple(t[rows].to(device) for t in (self.theta, self.x, self.masks))

    def head(self, num: int, device: str) -> tuple[Tensor, Tensor]:
        """Return (theta, x) of the first rows."""
        rows = self.rows[:num]
        return self.theta[rows].to(device), self.x[rows].to(device)


@dataclass
class LoaderData:
    """The same through one of torch's loaders, for users who bring their own collation."""

    loader: Any
    _head: tuple[Tensor, Tensor] | None = None
    _has_all: bool = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the loader's batches."""
        return iter(self.loader)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def batches(self, size: int, device: str, *, shuffle: bool) -> Iterator[tuple[Tensor, ...]]:
        """Yield the loader's batches; size and order are the loader's."""
        for batch in self.loader:
            yield tuple(t.to(device) for t in batch)

    def head(self, num: int, device: str) -> tuple[Tensor, Tensor]:
        """Return (theta, x) of the same rows each time, as many as are wanted or there are."""
        if self._head is None or (len(self._head[0]) < num and not self._has_all):
            thetas, xs, count = [], [], 0
            for theta, x, *_ in self.loader:
                thetas.append(theta)
                xs.append(x)
                count += len(theta)
                if count >= num:
                    break
            else:
                self._has_all = True
            self._head = torch.cat(thetas), torch.cat(xs)
        theta, x = self._head
        return theta[:num].to(device), x[:num].to(device)


def through_loaders(
    loaders: tuple[Any, Any], sizes: tuple[int, int], options: dict[str, Any]
) -> tuple[LoaderData, LoaderData]:
    """Return what to train on and what is held out, through loaders of torch's.

    Args:
        loaders: The two, as sbi builds them.
        sizes: Numbers of simulations in the two.
        options: What the loaders were built with, for the message.

    Raises:
        ValueError: If either has no batch.
    """
    if min(map(len, loaders)) == 0:
        raise ValueError(
            f"dataloader_kwargs {options} leave no batch of {sizes[0]} simulations to train on and "
            f"{sizes[1]} to validate; lower batch_size, or pass drop_last=False."
        )
    # sbi's loader of held-out rows shuffles; losses are compared row by row.
    return LoaderData(loaders[0]), LoaderData(list(loaders[1]))
