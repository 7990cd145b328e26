"""The order of images in shards: random, and yet each process reads shards of its own."""

from __future__ import annotations

from math import gcd

import torch

from dqnet.data.order import BatchOrder

#: shards that a batch comes from at once, over all processes
LANES = 64


class ShardOrder(BatchOrder):
    """A :class:`BatchOrder` that goes through shards one after the other, in several lanes.

    An epoch puts the shards in random order, and the images within each. That sequence is cut into
    lanes of equal length, and every batch takes its next images from all of them, lane by lane.
    The process with the r-th run of every batch therefore reads the r-th run of the shards, another
    one in each epoch; two processes share a shard only where their runs meet. The order itself
    does not depend on the number of processes.

    Args:
        shard: int64, the shard of every image of the part.
        args, kwargs: those of :class:`BatchOrder`.
    """

    def __init__(self, shard: torch.Tensor, *args: object, **kwargs: object) -> None:
        self.shard = shard
        super().__init__(*args, **kwargs)

    def shuffled(self) -> torch.Tensor:
        """The epoch's order over all processes: int64 ``[num_samples]``."""
        generator = self.generator(stream=0)
        places = torch.randperm(int(self.shard.max()) + 1, generator=generator)
        images = self.indices[torch.randperm(len(self.indices), generator=generator)]
        by_shard = images[places[self.shard[images]].argsort(stable=True)][: self.num_samples]
        if self.num_samples <= self.batch_size:
            return by_shard
        lanes = gcd(self.batch_size, LANES)
        return by_shard.view(lanes, -1, self.batch_size // lanes).transpose(0, 1).flatten()
