"""Which images of a batch run at which width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """A batch sorted by width.

    Attributes:
        order: int64 ``[N]``: the images' positions, those of the first width first.
        counts: how many images chose each of the K widths; known on the host, so that walking
            over the groups never waits for a device.
    """

    order: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, choice: Tensor) -> Groups:
        """The groups of one layer's one-hot choice ``[N, K]``."""
        return cls.of_routing(choice.unsqueeze(1))[0]

    @classmethod
    def of_routing(cls, routing: Tensor) -> list[Groups]:
        """The groups of every layer of a routing ``[N, L, K]``, with one transfer to the host."""
        chosen = routing.detach().argmax(-1)
        orders = chosen.argsort(dim=0, stable=True)
        # Half-precision sums lose images: bfloat16 has no 257.
        counts = routing.detach().sum(0, dtype=torch.float32).round().long().tolist()
        return [cls(orders[:, i], tuple(count)) for i, count in enumerate(counts)]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the index k of each chosen width and the positions of its images."""
        start = 0
        for k, count in enumerate(self.counts):
            if count:
                yield k, self.order[start : start + count]
            start += count

    def others(self, k: int) -> Tensor:
        """The positions of the images that did not choose width k; ``0 … N − 1`` if none did."""
        if not self.counts[k]:
            return torch.arange(len(self.order), device=self.order.device)
        start = sum(self.counts[:k])
        return torch.cat((self.order[:start], self.order[start + self.counts[k] :]))
