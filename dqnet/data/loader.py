"""The interface of the batch loaders; :func:`dqnet.data.loaders` makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from dqnet.data.order import BatchOrder


class Loader(ABC):
    """Batches of ``(images, labels)``.

    Images are float32 ``[B, C, H, W]``, ``(pixel / 255 - mean) / std`` per channel; labels are
    int64 ``[B]``. The order and the augmentation depend on (seed, epoch) alone: not on what ran
    before, on the global random state, on the number of workers or on the number of processes.

    Attributes:
        order: which images make up which batch; ``torch.cat(loader.order.batches())`` gives the
            index of each image that a pass yields in this process.
    """

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self.order)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the next pass: its epoch, from 0, and how many batches of it to leave out.

        The batches left out at its beginning cost nothing. The epoch has no effect on evaluation.
        """
        self.order.epoch, self.order.skip = epoch, skip

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Loaders:
    """The loaders of one data set.

    Attributes:
        train: shuffled and augmented.
        val: ``None`` when ``data.val_fraction`` is 0.
        test: only ever measured.
        calibration: what settings of a trained network are chosen on: the images of ``val``, or
            else some training images, without augmentation.
        observed: what quantizers are calibrated on: a sample of the training images, without
            augmentation.
        searched: what a search for widths chooses by: a sample of ``val``; ``None`` without it.
    """

    train: Loader
    val: Loader | None
    test: Loader
    calibration: Loader
    observed: Loader
    searched: Loader | None = None

    @property
    def images(self) -> dict[str, int]:
        """How many each part of the data has."""
        parts = {"training": self.train, "validation": self.val, "test": self.test}
        return {
            name: 0 if part is None else len(part.order.indices) for name, part in parts.items()
        }
