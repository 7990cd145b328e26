"""Reading image files into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from dqnet.errors import UserError

CHUNK = 256  # files per task: one task per file would cost as much as decoding a small image


def read_image(path: str) -> Image.Image:
    """Decode one file as RGB.

    Raises:
        UserError: the file is damaged, not an image or not readable.
    """
    try:
        return default_loader(path)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error


def read_images(paths: Sequence[str], size: int) -> torch.Tensor:
    """Decode all files, in threads: uint8 ``[N, 3, size, size]``.

    An image of another size is resized (bicubic, antialiased) until its shorter side is ``size``
    and its centre is kept.

    Raises:
        UserError: a file cannot be read.
    """
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def read_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(paths))):
            image = read_image(paths[index])
            if image.size != (size, size):
                image = center_crop(resize(image, size, InterpolationMode.BICUBIC), [size, size])
            pixels[index] = np.asarray(image).transpose(2, 0, 1)

    executor = ThreadPoolExecutor()
    try:
        list(executor.map(read_chunk, range(0, len(paths), CHUNK)))
    finally:
        # After an error, files that no task has begun with are of no interest.
        executor.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels)
