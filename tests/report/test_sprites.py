"""Sheets hold every image where the page looks for it."""

import io

import numpy as np
import pytest
from PIL import Image

from dqnet.report.page import sprites
from dqnet.report.page.gallery import spread


def unpacked(made, count):
    for i in range(count):
        sheet, place = divmod(i, made.columns * made.rows)
        pixels = np.asarray(Image.open(io.BytesIO(made.sheets[sheet])).convert("RGB"))
        top, left = place // made.columns * made.height, place % made.columns * made.width
        yield pixels[top : top + made.height, left : left + made.width]


@pytest.mark.parametrize("shape", [(5, 8, 8, 1), (40, 300, 200, 3), (1, 1500, 3, 3)])
def test_images_are_kept_exactly(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made = sprites.make_sprites(images)
    for image, found in zip(images, unpacked(made, len(images)), strict=True):
        assert (np.broadcast_to(image, found.shape) == found).all()


def test_many_pixels_are_compressed_with_loss(monkeypatch):
    monkeypatch.setattr(sprites, "LOSSLESS_BYTES", 0)
    y, x = np.mgrid[:32, :32]
    images = np.stack([np.stack([4 * x + i, 4 * y, 2 * x + 2 * y], -1) for i in range(9)])
    made = sprites.make_sprites(images.astype(np.uint8))
    for image, found in zip(images, unpacked(made, 9), strict=True):
        assert np.abs(image - found.astype(int)).mean() < 3


def test_spread_keeps_the_ends_and_the_order():
    order = np.random.default_rng(0).permutation(1000)
    chosen = spread(order, 30)
    places = [order.tolist().index(i) for i in chosen]
    assert (len(places), places[0], places[-1]) == (30, 0, 999)
    steps = np.diff(places)
    assert steps.max() - steps.min() <= 1
    assert spread(order, 1000) is order
