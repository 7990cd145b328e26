"""A sample of ImageNet as shards: every fifth image calibrates, and labels are the classes'."""

import pytest
from PIL import Image

from benchmarks.imagenet_sample import make_sample
from dqnet.config import DataConfig
from dqnet.data.shards import load
from dqnet.errors import UserError


def test_every_fifth_image_is_for_calibration(tmp_path):
    for i in range(12):
        folder = tmp_path / "source" / f"n{i // 2:02d}"  # two images of each of six classes
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02d}.png")
    make_sample(tmp_path / "source", tmp_path / "sample")
    splits = load(DataConfig(root=str(tmp_path / "sample"), size=4))
    for part, numbers in ((splits.train, {0, 5, 10}), (splits.test, {1, 2, 3, 4, 6, 7, 8, 9, 11})):
        seen = {part.image(i).getpixel((0, 0))[0]: part.labels[i].item() for i in range(len(part))}
        assert seen == {number: number // 2 for number in numbers}
    assert splits.class_names == tuple(f"n{i:02d}" for i in range(6))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="find any class folder"):
        make_sample(tmp_path, tmp_path / "sample")
