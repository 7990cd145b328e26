"""Batches of images in memory: values, reproducibility, augmentation, shares."""

import pytest
import torch
from torchvision.transforms import Normalize
from torchvision.transforms import functional as tv

from dqnet.data import loaders
from dqnet.errors import UserError


def whole(loader, epoch=0):
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def pixels(images, config):
    """Undo the normalisation."""
    std, mean = (torch.tensor(v).view(-1, 1, 1) for v in (config.std, config.mean))
    return ((images * std + mean) * 255).round().to(torch.uint8)


def test_evaluation_is_torchvisions_normalisation(splits, config):
    images, labels = whole(loaders(splits, config(), seed=0).test)
    normalize = Normalize(config().mean, config().std)
    expected = normalize(tv.convert_image_dtype(splits.test.images, torch.float32))
    torch.testing.assert_close(images, expected)
    assert images.dtype == torch.float32
    assert torch.equal(labels, splits.test.labels)
    assert labels.dtype == torch.int64


def test_lengths(splits, config):
    made = loaders(splits, config(val_fraction=1 / 3), seed=0)
    assert (len(made.train), made.train.order.num_samples) == (5, 20)
    assert (len(made.val), made.val.order.num_samples) == (3, 10)
    assert (len(made.test), made.test.order.num_samples) == (3, 10)
    assert [len(y) for _, y in made.train] == [4] * 5
    assert [len(y) for _, y in made.test] == [4, 3, 3]
    small = loaders(splits, config(batch_size=64), seed=0).train
    assert [len(y) for _, y in small] == [30]
    assert loaders(splits, config(), seed=0).val is None


def test_training_images_are_windows_of_the_padded_ones(splits, config):
    train = loaders(splits, config(batch_size=30), seed=3).train
    images, labels = whole(train)
    (indices,) = train.order.batches()
    assert torch.equal(labels, splits.train.labels[indices])
    offsets, flips = set(), 0
    for index, image in zip(indices, pixels(images, config()), strict=True):
        padded = tv.pad(splits.train.images[index], 2)
        candidates = {
            (top, left, mirrored): tv.hflip(window) if mirrored else window
            for top in range(5)
            for left in range(5)
            for window in [tv.crop(padded, top, left, 8, 8)]
            for mirrored in (False, True)
        }
        (found,) = [key for key, value in candidates.items() if torch.equal(value, image)]
        offsets.add(found[:2])
        flips += found[2]
    assert len(offsets) > 10
    assert 5 < flips < 25


@pytest.mark.parametrize("padding, flip", [(0, False), (2, False), (0, True)])
def test_each_augmentation_can_be_turned_off(splits, config, padding, flip):
    train = loaders(splits, config(crop_padding=padding, flip=flip, batch_size=30), seed=3).train
    images, _ = whole(train)
    (indices,) = train.order.batches()
    originals = splits.train.images[indices]
    same = (pixels(images, config()) == originals).flatten(1).all(1)
    mirrored = (pixels(images, config()) == originals.flip(3)).flatten(1).all(1)
    if not padding:
        assert (same | mirrored).all()
    if not flip:
        assert not mirrored.any()
    assert same.all() == (not padding and not flip)


def test_an_epoch_depends_on_seed_and_epoch_only(splits, config):
    train = loaders(splits, config(), seed=1).train
    state = torch.get_rng_state()
    first, _ = whole(train, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)
    later, _ = whole(train, epoch=7)
    torch.manual_seed(123)
    again, _ = whole(train, epoch=0)
    resumed, _ = whole(loaders(splits, config(), seed=1).train, epoch=7)
    other_seed, _ = whole(loaders(splits, config(), seed=2).train, epoch=0)
    assert torch.equal(again, first)
    assert torch.equal(resumed, later)
    assert not torch.equal(first.sort(0).values, later.sort(0).values)
    assert not torch.equal(first, other_seed)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(splits, config, world_size):
    alone = loaders(splits, config(batch_size=8), seed=1)
    ranks = [
        loaders(splits, config(batch_size=8), seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for one, *shares in zip(alone.train, *(r.train for r in ranks), strict=True):
        for whole_batch, parts in zip(one, zip(*shares, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), whole_batch)
    tested = torch.cat([torch.cat(r.test.order.batches()) for r in ranks])
    assert tested.tolist() == list(range(10))
    assert {r.test.order.num_samples for r in ranks} == {10}


def test_validation_is_stratified_fixed_and_apart(splits, config):
    made = [loaders(splits, config(val_fraction=1 / 3), seed=seed) for seed in (0, 1)]
    held_out = [torch.cat(m.val.order.batches()) for m in made]
    assert torch.equal(*held_out)
    assert splits.train.labels[held_out[0]].bincount().tolist() == [2] * 5
    train = torch.cat([m.order.indices for m in (made[0].train, made[0].val)])
    assert sorted(train.tolist()) == list(range(30))
    images, _ = whole(made[0].val)
    assert torch.equal(pixels(images, config()), splits.train.images[held_out[0]])


@pytest.mark.parametrize(
    "changes, processes, message",
    [
        ({"val_fraction": 0.01}, {}, "data.val_fraction"),
        ({"val_fraction": 0.99}, {}, "data.val_fraction"),
        ({"batch_size": 3}, {"world_size": 2}, "not a multiple of the 2 processes"),
        ({"batch_size": 31}, {"world_size": 31}, "30 images for 31 processes"),
        ({"batch_size": 12}, {"world_size": 12}, "10 images for 12 processes"),
        ({"batch_size": 32}, {"world_size": 4}, "30 training images .* multiple of 4 up to 28"),
    ],
)
def test_errors(splits, config, changes, processes, message):
    with pytest.raises(UserError, match=message) as caught:
        loaders(splits, config(**changes), seed=0, **processes)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_batches_equal_those_of_the_cpu(splits, config):
    cpu, gpu = (loaders(splits, config(), seed=1, device=d) for d in ("cpu", "cuda"))
    for (x, y), (gpu_x, gpu_y) in zip(cpu.train, gpu.train, strict=True):
        assert gpu_x.is_cuda
        torch.testing.assert_close(gpu_x.cpu(), x)
        assert torch.equal(gpu_y.cpu(), y)
