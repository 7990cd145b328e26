"""Crops and flips of a batch against torchvision's, one image at a time."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as tv

from dqnet.data.array_loader import crop, flip


@given(
    padding=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_crop_takes_the_windows_of_torchvision(padding, channels, height, width, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (6, channels, height, width), dtype=torch.uint8, generator=g)
    tops, lefts = torch.randint(2 * padding + 1, (2, 6), generator=g)
    cropped = crop(images, tops, lefts, padding)
    assert cropped.dtype == torch.uint8
    for image, top, left, result in zip(images, tops, lefts, cropped, strict=True):
        padded = tv.pad(image, padding)
        assert torch.equal(result, tv.crop(padded, int(top), int(left), height, width))


def test_flip_mirrors_the_chosen_images():
    images = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    flipped = flip(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert torch.equal(flipped[1], tv.hflip(images[1]))
