"""Which images make up which batch, in every epoch and every process."""

from __future__ import annotations

import hashlib

import torch


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed that differs for neighbouring ``parts`` such as (seed, epoch)."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class BatchOrder:
    """The batches of an epoch, as indices into a part of the data set.

    A global batch is ``batch_size`` consecutive images of the epoch's order; each process takes
    every ``world_size``-th image of it. Training shuffles by (seed, epoch) alone and drops an
    incomplete last batch (a set smaller than one batch is one smaller batch). Evaluation keeps the
    order of ``indices`` and every image. There a process may have one batch fewer than another
    one, when the last global batch has fewer images than there are processes.

    Args:
        indices: int64 ``[n]``, the images to go through.
        batch_size: images per global batch, at least ``world_size``.
        seed: of the shuffling; ``None`` for evaluation.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.

    Attributes:
        epoch: the epoch that :meth:`batches` describes; from 0.
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
        indices = self.indices
        if self.seed is not None:
            indices = indices[torch.randperm(len(indices), generator=self.generator(stream=0))]
        whole = indices[: self.num_samples].split(self.batch_size)
        shares = (batch[self.rank :: self.world_size] for batch in whole)
        return [share for share in shares if len(share)]
