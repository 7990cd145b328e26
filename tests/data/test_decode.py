"""Every kind of image file becomes 8-bit RGB, or is refused by name: the oracles are NumPy's."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dqnet.data.decode import DamagedImageError, find_damaged, read_image, read_images
from dqnet.errors import UserError

#: 16-bit values, most of which PIL's own conversion to RGB makes white
DEEP = np.array([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], dtype=np.uint16)


def png(path, pixels, colour_type):
    """A 16-bit PNG, written by hand: PIL writes grey ones only."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))


def portable(path, pixels, kind, highest=65535):
    height, width = pixels.shape[:2]
    head = f"{kind}\n{width} {height}\n{highest}\n".encode()
    path.write_bytes(head + pixels.astype(">u2").tobytes())


def pixels_of(path):
    return np.asarray(read_image(str(path)))


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_upper_half(tmp_path, extension, order):
    path = tmp_path / f"grey.{extension}"
    if order == ">u2" and extension == "png":
        png(path, DEEP, colour_type=0)
    else:
        Image.fromarray(DEEP.astype(order)).save(path)
    assert np.array_equal(pixels_of(path), np.stack([DEEP // 256] * 3, 2))


def test_sixteen_bit_colour_keeps_its_upper_half(tmp_path):
    colour = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], 2)
    png(tmp_path / "colour.png", colour, colour_type=2)
    assert np.array_equal(pixels_of(tmp_path / "colour.png"), colour // 256)


@pytest.mark.parametrize("highest", [65535, 4095])
def test_portable_maps_of_more_than_eight_bits(tmp_path, highest):
    """Scaled so that their highest value is white; PIL rounds the scaling, so within one."""
    values = np.minimum(DEEP, highest)
    portable(tmp_path / "grey.pgm", values, "P5", highest)
    got = pixels_of(tmp_path / "grey.pgm")[..., 0].astype(float)
    assert np.abs(got - values * (255 / highest)).max() <= 1


def test_eight_bits_written_as_sixteen_are_the_same_image(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "deep.png")
    assert np.array_equal(pixels_of(tmp_path / "deep.png")[..., 0], grey)


def test_cmyk_is_ink_on_white(tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "ink.tif")
    paper = 255 - inks.astype(float)
    expected = paper[..., :3] * paper[..., 3:] / 255
    assert np.abs(pixels_of(tmp_path / "ink.tif") - expected).max() <= 1


def test_cmyk_jpeg_is_not_a_negative(tmp_path):
    """Such files hold inverted inks."""
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[..., 0] = 200  # cyan takes red away
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "ink.jpg", quality=95)
    assert np.abs(pixels_of(tmp_path / "ink.jpg").astype(int) - [55, 255, 255]).max() <= 3


@pytest.mark.parametrize("transparency", [None, 2, bytes(range(0, 240, 60))])
def test_palette_colours_are_looked_up_without_a_warning(tmp_path, transparency):
    indices = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 128, 0], [7, 8, 9], [255, 255, 255]], dtype=np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette(colours.tobytes())
    extra = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png", **extra)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels_of(tmp_path / "palette.png"), colours[indices])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_black_and_white_grey_and_transparency(tmp_path, mode):
    grey = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path / "x.png"), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_one_pixel_becomes_an_image_of_its_colour(tmp_path, shape):
    Image.fromarray(np.full((*shape, 3), [10, 200, 30], dtype=np.uint8)).save(tmp_path / "x.png")
    images = read_images([str(tmp_path / "x.png")], 8)
    assert images.shape == (1, 3, 8, 8)
    assert (images.permute(0, 2, 3, 1).numpy() == [10, 200, 30]).all()


# What is refused


def damaged_files(folder):
    whole = folder / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("hello\n")
    Image.fromarray(noise[..., 0].astype(np.int32) * 1000).save(folder / "integers.tif")
    Image.fromarray(noise[..., 0] / np.float32(255)).save(folder / "floats.tif")
    return whole


@pytest.mark.parametrize(
    "name, reason",
    [
        ("half.jpg", "truncated"),
        ("empty.png", "cannot identify"),
        ("text.png", "cannot identify"),
        ("integers.tif", "32-bit integers; save it with 8 or 16 bits"),
        ("floats.tif", "floats; save it with 8 or 16 bits"),
    ],
)
def test_files_that_are_no_image_of_known_brightness(tmp_path, name, reason):
    damaged_files(tmp_path)
    with pytest.raises(DamagedImageError, match=reason) as caught:
        read_image(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert "data.damaged=skip" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_found_among_others(tmp_path):
    damaged_files(tmp_path)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    found = [Path(paths[i]).name for i in find_damaged(paths)]
    assert found == ["empty.png", "floats.tif", "half.jpg", "integers.tif", "text.png"]


def test_a_file_that_is_not_there_is_not_damaged(tmp_path):
    """It may be back tomorrow: nothing is left out because a disk was away."""
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"link\.png: No such file") as caught:
        find_damaged([str(tmp_path / "link.png")])
    assert not isinstance(caught.value, DamagedImageError)
