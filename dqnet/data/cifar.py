"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from dqnet.config import DataConfig
from dqnet.data.splits import ImageArray, Splits
from dqnet.errors import UserError


def load10(config: DataConfig) -> Splits:
    """CIFAR-10 from ``config.root``; see :func:`load100` for the errors."""
    return _load(CIFAR10, config)


def load100(config: DataConfig) -> Splits:
    """CIFAR-100 (fine labels) from ``config.root``.

    Raises:
        UserError: ``size`` is not 32, ``root`` is null, the files are missing or damaged and
            ``download`` is false, or the download fails.
    """
    return _load(CIFAR100, config)


def _load(dataset: type[CIFAR10], config: DataConfig) -> Splits:
    if config.size != 32:
        raise UserError(f"{dataset.__name__} images are 32 x 32; data.size is {config.size}")
    if config.root is None:
        raise UserError(f"give the folder of {dataset.__name__} with data.root=PATH")
    root = Path(config.root).expanduser()
    train = _part(dataset, root, train=True, download=config.download)
    test = _part(dataset, root, train=False, download=False)
    return Splits(
        train=_array(train),
        test=_array(test),
        num_classes=len(train.classes),
        class_names=tuple(train.classes),
        image_shape=(3, 32, 32),
    )


def _part(dataset: type[CIFAR10], root: Path, *, train: bool, download: bool) -> CIFAR10:
    try:
        return dataset(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(f"cannot download {dataset.__name__} into {root}: {error}") from error
        raise UserError(
            f"{dataset.__name__} ({root / dataset.base_folder}) is missing or damaged; "
            "data.download=true gets it"
        ) from error


def _array(part: CIFAR10) -> ImageArray:
    pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return ImageArray(pixels, torch.tensor(part.targets))
