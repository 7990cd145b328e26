"""Which images are spoiled, and by what: against SciPy, Pillow and the noise asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from dqnet.data import ImageArray, ImageFiles, load_data, loaders
from dqnet.data.corruption import QUALITIES, corrupt, qualities
from dqnet.errors import UserError


@pytest.mark.parametrize(
    "share, counts", [(0, [10, 0, 0, 0]), (0.6, [4, 2, 2, 2]), (1, [0, 4, 3, 3])]
)
def test_a_third_in_each_way(share, counts):
    assert qualities(10, share, 0).bincount(minlength=len(QUALITIES)).tolist() == counts


def test_a_smaller_share_is_within_a_larger_one():
    few, many = qualities(1000, 0.2, 0), qualities(1000, 0.7, 0)
    assert (few > 0).sum() == 200
    assert torch.equal(many[few > 0], few[few > 0])


def test_parts_have_their_own_choice(splits):
    splits = replace(splits, test=splits.train)
    spoiled = corrupt(splits, 0.5)
    assert torch.equal(spoiled.train.images, corrupt(splits, 0.5).train.images)
    assert not torch.equal(spoiled.train.images, spoiled.test.images)
    assert torch.equal(spoiled.train.labels, splits.train.labels)


@pytest.fixture
def photographs(splits):
    """90 images of 32 x 32 pixels, smooth with edges, unchanged by what is done to them."""
    rng = np.random.default_rng(0)
    images = gaussian_filter(rng.normal(size=(90, 3, 32, 32)), (0, 0, 3, 3))
    images = np.where(images > 0, 120 + 200 * images, 70 + 200 * images).clip(0, 255)
    array = ImageArray(torch.from_numpy(images.astype(np.uint8)), torch.arange(90) % 5)
    return replace(splits, train=array, image_shape=(3, 32, 32))


def test_each_quality_is_what_its_name_says(photographs):
    before = photographs.train.images.clone()
    after = corrupt(photographs, 0.5).train.images
    assert torch.equal(photographs.train.images, before)
    quality = qualities(90, 0.5, 0)
    assert torch.equal(after[quality == 0], before[quality == 0])

    for image, result in zip(before[quality == 1], after[quality == 1], strict=True):
        # A kernel of seven pixels ends at three deviations, as truncate=3 does.
        expected = gaussian_filter(image.double().numpy(), (0, 1, 1), mode="mirror", truncate=3)
        assert np.abs(result.numpy() - expected).max() <= 0.51

    noise = (after.double() - before.double())[quality == 2]
    noise = noise[(before[quality == 2] > 85) & (before[quality == 2] < 170)]
    assert len(noise) > 500
    assert abs(noise.mean()) < 3 * 25.5 / len(noise) ** 0.5
    assert noise.std() == pytest.approx(25.5, rel=0.1)

    channels = zip(
        before[quality == 3].flatten(0, 1), after[quality == 3].flatten(0, 1), strict=True
    )
    for channel, result in channels:
        picture = Image.fromarray(channel.float().numpy())  # floats, which Pillow does not round
        small = picture.resize((16, 16), Image.Resampling.BILINEAR)
        expected = np.asarray(small.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(result.numpy() - expected).max() <= 0.51


def test_noise_does_not_wrap_around(photographs):
    white = replace(photographs.train, images=torch.full_like(photographs.train.images, 255))
    after = corrupt(replace(photographs, train=white), 1).train.images
    noisy = after[qualities(90, 1, 0) == 2]
    assert noisy.min() > 100
    assert (noisy == 255).double().mean() == pytest.approx(0.5, abs=0.03)


def test_training_and_held_out_images_are_spoiled(config):
    digits = config(
        _target_="dqnet.data.digits.load", mean=[0.0], std=[1.0], batch_size=2000, crop_padding=0,
        flip=False, val_fraction=0.2,
    )  # fmt: skip
    spoiled = replace(digits, corruption=0.5)
    pairs = zip(
        *(
            (next(iter(own.train)), next(iter(own.val)), next(iter(own.test)))
            for own in (loaders(load_data(c), c, seed=0) for c in (digits, spoiled))
        ),
        strict=True,
    )
    for (clean, labels), (images, same) in pairs:
        assert torch.equal(labels, same)
        share = (clean != images).flatten(1).any(1).double().mean()
        assert share == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_at_most_all(config, share):
    with pytest.raises(UserError, match=r"data.corruption .* must be in \[0, 1\]"):
        load_data(config(_target_="dqnet.data.digits.load", corruption=share))


def test_files_are_refused(splits):
    files = ImageFiles(("a.png",), torch.tensor([0]))
    with pytest.raises(UserError, match=r"data\.corruption needs images in memory"):
        corrupt(replace(splits, train=files), 0.1)
