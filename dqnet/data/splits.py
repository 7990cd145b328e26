"""What a data set is to the rest of the library: a training part, a test part and their classes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor

from dqnet.data.decode import read_image
from dqnet.errors import UserError

#: why a file is left out of a part
DAMAGED = "damaged images"


class _Labelled:
    """As many as there are labels."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageArray(_Labelled):
    """Images in memory, all of one size.

    Attributes:
        images: uint8 ``[N, C, H, W]``, pixel values 0 to 255.
        labels: int64 ``[N]``, class indices.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ImageFiles(_Labelled):
    """Image files of any size, decoded anew in every epoch.

    Attributes:
        paths: N file names.
        labels: int64 ``[N]``, class indices.
    """

    paths: tuple[str, ...]
    labels: Tensor

    def image(self, index: int) -> Image.Image:
        """Decodes one image; see :func:`dqnet.data.decode.read_image`."""
        return read_image(self.paths[index])


@dataclass(frozen=True, eq=False)
class ImageShards(_Labelled):
    """Image files inside tar files, each of which is read by itself.

    Attributes:
        paths: the tar files.
        shard: int64 ``[N]``: which of them each image is in; ascending.
        offset, size: int64 ``[N]``: where in it the image begins and how long it is, in bytes.
        labels: int64 ``[N]``, class indices.
    """

    paths: tuple[str, ...]
    shard: Tensor
    offset: Tensor
    size: Tensor
    labels: Tensor

    def image(self, index: int) -> Image.Image:
        """Decodes one image; see :func:`dqnet.data.decode.read_image`."""
        path = self.paths[self.shard[index]]
        offset, size = int(self.offset[index]), int(self.size[index])

        def content() -> BinaryIO:
            return io.BytesIO(os.pread(_opened(path).fileno(), size, offset))

        return read_image(f"{path}: {index:09d}", content)


# As many as a process needs at once and more, and fewer than a process may have open.
@lru_cache(maxsize=256)
def _opened(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)


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


def stratified_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the images to keep and of the images held out: always the same for one set.

    Args:
        labels: int64 ``[N]``.
        fraction: of the images to hold out, of each class alike, in (0, 1).

    Returns:
        Two ascending int64 tensors, together ``0 ... N - 1``.

    Raises:
        UserError: a part would have fewer images than there are classes.
    """
    try:
        parts = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=fraction,
            stratify=labels.numpy(),
            random_state=0,
        )
    except ValueError as error:
        raise UserError(
            f"a fraction of {fraction:g} cannot be held out of {len(labels)} images in "
            f"{len(labels.unique())} classes: each part needs at least one image per class"
        ) from error
    kept, held_out = (torch.from_numpy(part).sort().values for part in parts)
    return kept, held_out
