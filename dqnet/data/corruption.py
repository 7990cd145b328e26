"""Images of mixed quality: a share of each part is blurred, noisy or of half the resolution.

It is a positive control for networks that choose bits by the image. If no controller gains where
some images are visibly harder than others, the reason is not that those of a data set are alike.
Blur and noise are of the strengths of the hardest level of CIFAR-10-C (Hendrycks and Dietterich
2019, https://arxiv.org/abs/1903.12261).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from dqnet.data.splits import ImageArray, Part, Splits
from dqnet.errors import UserError

#: what an image may be, by its number in :func:`qualities`
QUALITIES = ("clean", "blurred", "noisy", "half")
BLUR_SIGMA = 1.0  # pixels
NOISE_STD = 0.1  # of images in [0, 1]


def corrupt(splits: Splits, share: float) -> Splits:
    """Both parts with a ``share`` of their images, in [0, 1], spoiled: the same ones every time.

    Raises:
        UserError: the images are files that are decoded anew in every epoch.
    """
    return replace(splits, train=_part(splits.train, share, 0), test=_part(splits.test, share, 1))


def qualities(images: int, share: float, seed: int) -> Tensor:
    """The quality of each of a part's ``images``: int64 ``[images]``, indices of QUALITIES.

    Those of a smaller share are among those of a larger one, each spoiled in the same way.

    Args:
        images: how many there are.
        share: of them that are spoiled, in [0, 1], a third in each way.
        seed: 0 for the training part, 1 for the test part.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    quality = torch.zeros(images, dtype=torch.int64)
    spoiled = order[: round(share * images)]
    quality[spoiled] = torch.arange(len(spoiled)) % (len(QUALITIES) - 1) + 1
    return quality


def _part(part: Part, share: float, seed: int) -> ImageArray:
    if not isinstance(part, ImageArray):
        raise UserError("data.corruption needs images in memory: data=imagefolder data.cache=true")
    quality = qualities(len(part), share, seed)
    images = part.images.clone()
    blurred, noisy, half = ((quality == i).nonzero().flatten() for i in range(1, len(QUALITIES)))
    images[blurred] = gaussian_blur(images[blurred], [7, 7], [BLUR_SIGMA] * 2)
    images[noisy] = _noisy(images[noisy], torch.Generator().manual_seed(seed))
    images[half] = _half(images[half])
    return replace(part, images=images)


def _noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator).mul_(255 * NOISE_STD)
    return noise.add_(images).round_().clamp_(0, 255).to(torch.uint8)


def _half(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    size = [max(height // 2, 1), max(width // 2, 1)]
    small = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    large = F.interpolate(small, (height, width), mode="bilinear")
    return large.round_().clamp_(0, 255).to(torch.uint8)
