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
    name = dataset.__name__
    if config.size != 32:
        raise UserError(f"{name} images are 32 x 32; data.size is {config.size}")
    if config.root is None:
        raise UserError(f"give the folder of {name} with data.root=PATH")
    root = Path(config.root).expanduser()
    try:
        train = dataset(root, train=True, download=config.download)
        test = dataset(root, train=False)
    except (RuntimeError, OSError) as error:
        if config.download:
            raise UserError(f"cannot download {name} into {root}: {error}") from error
        raise UserError(
            f"{name} ({root / dataset.base_folder}) is missing or damaged; "
            "data.download=true gets it"
        ) from error
    arrays = [
        ImageArray(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)
        )
        for part in (train, test)
    ]
    return Splits(*arrays, len(train.classes), tuple(train.classes), (3, 32, 32))
