"""The gallery's sheets hold every image where the page looks for it."""

import io

import numpy as np
import pytest
from PIL import Image

from dqnet.report.page import gallery


def unpacked(images):
    """The images as the page finds them on their sheets."""
    height, width = images.shape[1:3]
    columns, rows = gallery.sheet_shape(images)
    sheets = gallery.make_sheets(images)
    for i in range(len(images)):
        sheet, place = divmod(i, columns * rows)
        pixels = np.asarray(Image.open(io.BytesIO(sheets[sheet])).convert("RGB"))
        top, left = place // columns * height, place % columns * width
        yield pixels[top : top + height, left : left + width]


@pytest.mark.parametrize("shape", [(5, 8, 8, 1), (40, 300, 200, 3), (1, 1500, 3, 3)])
def test_images_are_kept_exactly(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for image, found in zip(images, unpacked(images), strict=True):
        assert (np.broadcast_to(image, found.shape) == found).all()


def test_many_pixels_are_compressed_with_loss(monkeypatch):
    monkeypatch.setattr(gallery, "LOSSLESS_BYTES", 0)
    y, x = np.mgrid[:32, :32]
    images = np.stack([np.stack([4 * x + i, 4 * y, 2 * x + 2 * y], -1) for i in range(9)])
    images = images.astype(np.uint8)
    for image, found in zip(images, unpacked(images), strict=True):
        assert np.abs(image.astype(int) - found.astype(int)).mean() < 3


def test_spread_keeps_the_ends_and_the_order():
    order = np.random.default_rng(0).permutation(1000)
    chosen = gallery.spread(order, 30)
    places = [order.tolist().index(i) for i in chosen]
    assert (len(places), places[0], places[-1]) == (30, 0, 999)
    steps = np.diff(places)
    assert steps.max() - steps.min() <= 1
    assert gallery.spread(order, 1000) is order
