"""Random crops and flips of a whole batch of pixels at once, with the random numbers given."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def crop(
    images: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, padding: int
) -> torch.Tensor:
    """A window of each zero-padded image, as torchvision's ``RandomCrop(size, padding)`` takes it.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        tops: int64 ``[N]`` in ``[0, 2 * padding]``, first row of each window.
        lefts: the first columns, of the same shape.
        padding: rows and columns of zeros on every side.

    Returns:
        ``[N, C, H, W]`` of the dtype of ``images``.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    # A view with every possible window of every image: the indexing copies only the chosen ones.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]


def flip(images: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Mirror left and right the images ``[N, C, H, W]`` for which ``flipped`` (bool ``[N]``)."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
