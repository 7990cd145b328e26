"""What a data set is to the rest of the library: a training part, a test part and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from PIL import Image

from dqnet.data.decode import read_image
from dqnet.data.image_shards import ImageShards

#: why a file is left out of a part
DAMAGED = "damaged images"


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
        left_out: files that are in neither part, in either folder: path → why.
    """

    train: Part
    test: Part
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def damaged(self) -> tuple[str, ...]:
        """The images that were left out because they cannot be decoded."""
        return tuple(path for path, why in self.left_out.items() if why == DAMAGED)


def lines_of_left_out(left_out: Mapping[str, str]) -> list[str]:
    """For each reason how many files were left out, and the first of them."""
    lines = []
    for why in dict.fromkeys(left_out.values()):
        paths = [path for path, reason in left_out.items() if reason == why]
        some = ", ".join(paths[:3]) + (" ..." if len(paths) > 3 else "")
        lines.append(f"{why}, left out: {len(paths)} ({some})")
    return lines
