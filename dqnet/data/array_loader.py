"""Batches of images that are in memory as uint8 pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.config import DataConfig
from dqnet.data.loader import Loader
from dqnet.data.order import BatchOrder
from dqnet.data.splits import ImageArray


class ArrayLoader(Loader):
    """Gathers, augments and normalises whole batches on the device that holds the pixels.

    Training (an order with a seed) takes random crops and flips; the random numbers are drawn on
    the CPU, so that every device sees the same batches. Evaluation leaves the images as they are.
    """

    def __init__(self, array: ImageArray, order: BatchOrder, config: DataConfig) -> None:
        super().__init__(order)
        self.array, self.crop_padding, self.flip = array, config.crop_padding, config.flip
        device = array.images.device
        self.mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(config.std, device=device).view(-1, 1, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.array.images, self.array.labels
        augment = self._augmentation() if self.order.seed is not None else None
        for share in self.order.batches():
            index = share.to(images.device)
            pixels = images.index_select(0, index)
            if augment is not None:
                tops, lefts, flipped = augment[share].to(images.device).unbind(1)
                if self.crop_padding:
                    pixels = crop(pixels, tops, lefts, self.crop_padding)
                if self.flip:
                    pixels = flip(pixels, flipped.bool())
            yield pixels.float().div_(255).sub_(self.mean).div_(self.std), labels[index]

    def _augmentation(self) -> Tensor:
        """Row, column and flip of every image in this epoch: int64 ``[N, 3]``.

        One draw per image of the set, not per image of the batch: an image's crop is then the
        same in whichever process it lands.
        """
        generator = self.order.generator(stream=1)
        places, count = 2 * self.crop_padding + 1, len(self.array)
        offsets = torch.randint(places, (count, 2), generator=generator)
        return torch.cat([offsets, torch.randint(2, (count, 1), generator=generator)], dim=1)


def crop(images: Tensor, tops: Tensor, lefts: Tensor, padding: int) -> Tensor:
    """A window of each zero-padded image, as torchvision's ``RandomCrop(size, padding)`` takes it.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        tops, lefts: int64 ``[N]`` in ``[0, 2 * padding]``, the first row and column of each window.
        padding: rows and columns of zeros on every side.

    Returns:
        ``[N, C, H, W]`` of the dtype of ``images``.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    # A view with every possible window of every image: the indexing copies only the chosen ones.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right the images ``[N, C, H, W]`` for which ``flipped`` (bool ``[N]``)."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
