"""Reading image files into pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from dqnet.errors import UserError

T = TypeVar("T")

CHUNK = 256  # files per task: one task per file would cost as much as decoding a small image


class DamagedImageError(UserError):
    """A file whose content is not an image, or only a part of one."""


def read_image(path: str, content: Callable[[], BinaryIO] | None = None) -> Image.Image:
    """Decode one file as RGB with 8 bits per channel, whatever it has.

    Transparency is dropped, as PIL and torchvision do; of 16 bits the upper 8 are kept.

    Args:
        path: the file, or the name for it in errors.
        content: opens an image that is not a file of its own.

    Raises:
        DamagedImageError: the file is damaged, not an image, or has pixels that are floats or
            integers of 32 bits, of which nobody knows what is white.
        UserError: the file cannot be read.
    """
    try:
        with content() if content is not None else Path(path).open("rb") as file:
            return _rgb(Image.open(file))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        if isinstance(error, OSError) and error.errno is not None:  # not the content's fault
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedImageError(
            f"cannot read the image {path}: {reason} (data.damaged=skip leaves such files out)"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    integers = image.mode == "I" and image.format in ("PNG", "PPM")  # of 16 bits at most
    if image.mode.startswith("I;16") or integers:
        # PIL's own conversion makes everything above 255 white.
        upper = np.right_shift(np.asarray(image), 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ValueError(f"its pixels are {kind}; save it with 8 or 16 bits per channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about the direct way
    return image.convert("RGB")


def read_images(paths: Sequence[str], size: int) -> torch.Tensor:
    """Decode all files, in threads: uint8 ``[N, 3, size, size]``.

    An image of another size is resized (bicubic, antialiased) until its shorter side is ``size``
    and its centre is kept.

    Raises:
        UserError: a file cannot be read.
    """
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def read(index: int) -> None:
        image = read_image(paths[index])
        if image.size != (size, size):
            image = center_crop(resize(image, size, InterpolationMode.BICUBIC), [size, size])
        pixels[index] = np.asarray(image).transpose(2, 0, 1)

    _in_threads(read, len(paths))
    return torch.from_numpy(pixels)


def find_damaged(paths: Sequence[str]) -> list[int]:
    """Decode all files, in threads: the ascending indices of those that are damaged.

    Raises:
        UserError: a file cannot be read for another reason.
    """

    def is_damaged(index: int) -> bool:
        try:
            read_image(paths[index])
        except DamagedImageError:
            return True
        return False

    return [i for i, damaged in enumerate(_in_threads(is_damaged, len(paths))) if damaged]


def _in_threads(task: Callable[[int], T], count: int) -> list[T]:
    """``task(0)`` … ``task(count - 1)``; the first error ends it."""
    with ThreadPool() as pool:
        return list(pool.imap(task, range(count), CHUNK))
