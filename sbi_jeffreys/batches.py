"""Where batches come from: the stored simulations by index, or a loader of torch's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Data", "LoaderData", "ones"]


def ones(x: Tensor) -> Tensor:
    """Calibration kernel that weighs all rows alike: 1 for each, shape (n,)."""
    return x.new_ones(len(x))


class Data(NamedTuple):
    """Rows of the stored simulations: theta (n, d), x (n, *event), masks (n, 1), which rows."""

    theta: Tensor
    x: Tensor
    masks: Tensor
    rows: Tensor

    def batches(self, size: int, device: str, *, shuffle: bool) -> Iterator[tuple[Tensor, ...]]:
        """Yield (theta, x, masks) of nearly equal size, by index: nothing is copied twice."""
        num = len(self.rows)
        order = self.rows[torch.randperm(num)] if shuffle else self.rows
        for rows in order.tensor_split(max(1, num // size)):
            rows = rows.to(self.theta.device)
            yield tuple(t[rows].to(device) for t in (self.theta, self.x, self.masks))

    def head(self, num: int, device: str) -> tuple[Tensor, Tensor]:
        """Return (theta, x) of the first rows."""
        rows = self.rows[:num].to(self.theta.device)
        return self.theta[rows].to(device), self.x[rows].to(device)


@dataclass
class LoaderData:
    """The same through one of torch's loaders, for users who bring their own collation."""

    loader: Any
    _head: tuple[Tensor, Tensor] | None = None

    def batches(self, size: int, device: str, *, shuffle: bool) -> Iterator[tuple[Tensor, ...]]:
        """Yield the loader's batches; size and order are the loader's."""
        for batch in self.loader:
            yield tuple(t.to(device) for t in batch)

    def head(self, num: int, device: str) -> tuple[Tensor, Tensor]:
        """Return (theta, x) of the same rows each time, as many as are wanted or there are."""
        if self._head is None or len(self._head[0]) < num:
            thetas, xs, count = [], [], 0
            for theta, x, *_ in self.loader:
                thetas.append(theta)
                xs.append(x)
                count += len(theta)
                if count >= num:
                    break
            self._head = torch.cat(thetas), torch.cat(xs)
        theta, x = self._head
        return theta[:num].to(device), x[:num].to(device)
