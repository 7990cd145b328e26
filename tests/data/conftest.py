"""Small configurations, arrays and image folders."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dqnet.config import DataConfig
from dqnet.data import ImageArray, Splits

CONFIG = DataConfig(
    _target_="dqnet.data.folder.load",
    root=None,
    download=False,
    size=8,
    mean=[0.5, 0.4, 0.3],
    std=[0.25, 0.2, 0.1],
    crop_padding=2,
    flip=True,
    cache=True,
    batch_size=4,
    val_fraction=0.0,
    workers=0,
)


@pytest.fixture
def config():
    """``config(key=value, ...)``: a small configuration."""
    return lambda **changes: replace(CONFIG, **changes)


@pytest.fixture
def splits():
    """30 training and 10 test images of 5 classes."""

    def part(count):
        images = torch.randint(1, 256, (count, 3, 8, 8), dtype=torch.uint8)
        return ImageArray(images, torch.arange(count) % 5)

    return Splits(part(30), part(10), 5, tuple("abcde"), (3, 8, 8))


@pytest.fixture
def image_folder(tmp_path):
    """train/ and test/ with classes cat and dog, 6 and 2 PNG files each, of 8 x 8 pixels."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path
