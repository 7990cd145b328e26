"""Handwritten digits: 1,797 real images inside scikit-learn, so that nothing is downloaded.

Test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
https://archive.ics.uci.edu/dataset/80.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from dqnet.config import DataConfig
from dqnet.data.splits import ImageArray, Splits, stratified_split
from dqnet.errors import UserError

MAX_SIZE = 256


def load(config: DataConfig) -> Splits:
    """The digits as one-channel images of ``config.size`` pixels (bilinear, from 8 x 8).

    A fixed fifth of every class, 360 images, is the test part.

    Raises:
        UserError: ``size`` is more than 256.
    """
    if config.size > MAX_SIZE:
        raise UserError(f"data.size {config.size}: digits are enlarged to at most {MAX_SIZE}")
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # published as 0 ... 16
    size = (config.size, config.size)
    pixels = F.interpolate(grey, size, mode="bilinear", antialias=True).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = stratified_split(labels, fraction=0.2)
    return Splits(
        train=ImageArray(pixels[train], labels[train]),
        test=ImageArray(pixels[test], labels[test]),
        num_classes=10,
        class_names=tuple(str(name) for name in digits.target_names),
        image_shape=(1, *size),
    )
