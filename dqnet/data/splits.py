"""What a data set is to the rest of the library: a training part, a test part and their classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from PIL import Image

from dqnet.data.decode import read_image
from dqnet.data.image_shards import ImageShards


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Images in memory, all of one size.

    Attributes:
        images: uint8 ``[N, C, H, W]``, pixel values 0 to 255.
        labels: int64 ``[N]``, class indices.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of any size, decoded anew in every epoch.

    Attributes:
        paths: N file names.
        labels: int64 ``[N]``, class indices.
    """

    paths: tuple[str, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Decodes one image; see :func:`dqnet.data.decode.read_image`."""
        return read_image(self.paths[index])


Part: TypeAlias = ImageArray | ImageFiles | ImageShards


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set before batching; both parts have the same form.

    Attributes:
        train: the training part, validation images included.
        test: the test part, only ever measured.
        num_classes: labels are in ``[0, num_classes)``.
        class_names: the name of each label.
        image_shape: ``(C, H, W)`` of the images the network receives.
        damaged: files that were left out of both parts.
    """

    train: Part
    test: Part
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    damaged: tuple[str, ...] = ()
