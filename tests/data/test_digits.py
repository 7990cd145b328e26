"""The data set inside scikit-learn."""

import torch
from sklearn.datasets import load_digits

from dqnet.data import load_data


def digits(config, size):
    return load_data(config(_target_="dqnet.data.digits.load", size=size, mean=[0.3], std=[0.3]))


def test_parts_hold_every_digit_once(config):
    splits = digits(config, 8)
    assert (len(splits.train), len(splits.test), splits.num_classes) == (1437, 360, 10)
    assert splits.class_names == tuple("0123456789")
    images = torch.cat([splits.train.images, splits.test.images])
    assert images.dtype == torch.uint8
    labels = torch.cat([splits.train.labels, splits.test.labels])
    published = load_digits()
    expected = (torch.from_numpy(published.images) * 255 / 16).round().to(torch.uint8)
    rows = torch.cat([images.flatten(1), labels[:, None]], 1)
    expected_rows = torch.cat([expected.flatten(1), torch.from_numpy(published.target)[:, None]], 1)
    assert sorted(rows.tolist()) == sorted(expected_rows.tolist())


def test_the_test_part_is_a_fixed_fifth_of_every_class(config):
    splits = digits(config, 8)
    counts = torch.from_numpy(load_digits().target).bincount()
    assert (splits.test.labels.bincount() - counts / 5).abs().max() < 1
    assert torch.equal(splits.test.images, digits(config, 8).test.images)


def test_images_have_the_size_asked_for(config):
    splits = digits(config, 16)
    assert splits.image_shape == tuple(splits.train.images.shape[1:]) == (1, 16, 16)
    # Bilinear enlarging keeps the mean brightness.
    means = [s.train.images.float().mean() for s in (splits, digits(config, 8))]
    torch.testing.assert_close(*means, rtol=0.01, atol=0)
