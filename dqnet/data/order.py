"""Which images make up which batch, in every epoch and every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import ceil, gcd

import torch
from torch import Tensor

#: shards that a batch comes from at once, over all processes
LANES = 64


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed that differs for neighbouring ``parts`` such as (seed, epoch)."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class BatchOrder:
    """The batches of an epoch, as indices into a part of the data set.

    In training a global batch is ``batch_size`` consecutive images of the epoch's order, which is
    shuffled by (seed, epoch) alone; each process takes an equal run of it. An incomplete last batch
    is dropped (a set smaller than one batch is one smaller batch). Evaluation keeps the order of
    ``indices`` and every image: each process goes through one run of them, in as many batches as
    the others, whose sizes differ by at most one.

    Images in shards are shuffled shard by shard. That sequence is cut into lanes of equal length,
    and every batch takes its next images from all of them, lane by lane. The process with the r-th
    run of every batch therefore reads the r-th run of the shards, another one in each epoch; two
    processes share a shard only where their runs meet.

    Args:
        indices: int64 ``[n]``, the images to go through; n is at least ``world_size``.
        batch_size: images per global batch, a multiple of ``world_size``.
        seed: of the shuffling; ``None`` for evaluation.
        rank, world_size: this process, in ``[0, world_size)``, of how many.
        shard: int64, the shard of every image of the part, if it is in shards.

    Attributes:
        epoch: the epoch that :meth:`batches` describes; from 0.
        skip: how many of its first batches :meth:`batches` leaves out.
        num_samples: images in one epoch, over all processes.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        seed: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        shard: Tensor | None = None,
    ) -> None:
        self.indices, self.batch_size, self.seed, self.shard = indices, batch_size, seed, shard
        self.rank, self.world_size = rank, world_size
        self.epoch = self.skip = 0
        self.num_samples = len(indices)
        if seed is not None and len(indices) > batch_size:
            self.num_samples -= len(indices) % batch_size
        self._length = len(self.batches())

    def __len__(self) -> int:
        """Number of batches of this process."""
        return self._length

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        """As a sampler: each batch's images, and the epoch, which worker processes cannot know."""
        return ((share.tolist(), self.epoch) for share in self.batches())

    def generator(self, stream: int) -> torch.Generator:
        """A CPU generator of this epoch's random numbers; one ``stream`` per use of them."""
        assert self.seed is not None, "evaluation draws no random numbers"
        return torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch, stream))

    def batches(self) -> list[Tensor]:
        """This process's share of each batch of the epoch: int64 ``[batch]`` tensors."""
        if self.seed is None:
            images = len(self.indices)
            count = min(ceil(images / self.batch_size), images // self.world_size)
            return list(self._share(self.indices).tensor_split(count))
        return [self._share(b) for b in self._shuffled().split(self.batch_size)[self.skip :]]

    def _shuffled(self) -> Tensor:
        """The epoch's order over all processes: int64 ``[num_samples]``."""
        generator = self.generator(stream=0)
        if self.shard is None:
            order = torch.randperm(len(self.indices), generator=generator)
            return self.indices[order[: self.num_samples]]
        places = torch.randperm(int(self.shard.max()) + 1, generator=generator)
        images = self.indices[torch.randperm(len(self.indices), generator=generator)]
        by_shard = images[places[self.shard[images]].argsort(stable=True)][: self.num_samples]
        if self.num_samples <= self.batch_size:
            return by_shard
        lanes = gcd(self.batch_size, LANES)
        return by_shard.view(lanes, -1, self.batch_size // lanes).transpose(0, 1).flatten()

    def _share(self, images: Tensor) -> Tensor:
        return images.tensor_split(self.world_size)[self.rank]
