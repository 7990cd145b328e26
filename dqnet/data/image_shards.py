"""Images inside tar files, each of which is read by itself."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from dqnet.data.decode import read_image


@dataclass(frozen=True, eq=False)
class ImageShards:
    """Image files of any size inside tar files, decoded anew in every epoch.

    Attributes:
        paths: the tar files.
        shard: int64 ``[N]``: which of them each image is in; ascending.
        offset: int64 ``[N]``: where in it the image begins, in bytes.
        size: int64 ``[N]``: how many bytes it has.
        labels: int64 ``[N]``, class indices.
    """

    paths: tuple[str, ...]
    shard: torch.Tensor
    offset: torch.Tensor
    size: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

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
