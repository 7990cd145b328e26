"""Which images make up which batch, in every epoch and every process."""

from __future__ import annotations

import hashlib
from math import ceil

import torch


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

    Args:
        indices: int64 ``[n]``, the images to go through; n is at least ``world_size``.
        batch_size: images per global batch, a multiple of ``world_size``.
        seed: of the shuffling; ``None`` for evaluation.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.

    Attributes:
        epoch: the epoch that :meth:`batches` describes; from 0.
        skip: how many of its first batches :meth:`batches` leaves out.
        num_samples: images in one epoch, over all processes.
    """

    def __init__(
        self,
        indices: torch.Tensor,
        batch_size: int,
        seed: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0
        self.num_samples = len(indices)
        if seed is not None and len(indices) > batch_size:
            self.num_samples -= len(indices) % batch_size
        self._length = len(self.batches())

    def __len__(self) -> int:
        """Number of batches of this process."""
        return self._length

    def generator(self, stream: int) -> torch.Generator:
        """A CPU generator of this epoch's random numbers; one ``stream`` per use of them."""
        assert self.seed is not None, "evaluation draws no random numbers"
        return torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch, stream))

    def batches(self) -> list[torch.Tensor]:
        """This process's share of each batch of the epoch: int64 ``[batch]`` tensors."""
        if self.seed is None:
            images = len(self.indices)
            count = min(ceil(images / self.batch_size), images // self.world_size)
            return list(self._share(self.indices).tensor_split(count))
        whole = self.shuffled().split(self.batch_size)[self.skip :]
        return [self._share(batch) for batch in whole]

    def shuffled(self) -> torch.Tensor:
        """The epoch's order over all processes: int64 ``[num_samples]``."""
        order = torch.randperm(len(self.indices), generator=self.generator(stream=0))
        return self.indices[order[: self.num_samples]]

    def _share(self, images: torch.Tensor) -> torch.Tensor:
        return images.tensor_split(self.world_size)[self.rank]
