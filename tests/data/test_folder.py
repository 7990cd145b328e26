"""Image folders, decoded once or in every epoch."""

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import Normalize
from torchvision.transforms import functional as tv

from dqnet.data import ImageArray, ImageFiles, folder, load_data, loaders
from dqnet.errors import UserError


def epoch_of(loader, epoch=0):
    loader.set_epoch(epoch)
    return [torch.cat(column) for column in zip(*loader, strict=True)]


def test_cached_pixels_are_torchvisions(image_folder, config):
    splits = load_data(config(root=str(image_folder)))
    assert isinstance(splits.train, ImageArray)
    assert splits.class_names == ("cat", "dog")
    assert (splits.num_classes, splits.image_shape) == (2, (3, 8, 8))
    for part, name in ((splits.train, "train"), (splits.test, "test")):
        reference = ImageFolder(str(image_folder / name), transform=tv.pil_to_tensor)
        assert torch.equal(part.images, torch.stack([image for image, _ in reference]))
        assert part.labels.tolist() == [label for _, label in reference]


def test_other_sizes_and_modes_become_square_rgb(image_folder, config):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    wide = Image.fromarray(pixels)
    wide.save(image_folder / "train/cat/0.png")
    Image.new("L", (8, 8), 77).save(image_folder / "train/cat/1.png")
    images = load_data(config(root=str(image_folder))).train.images
    resized = wide.resize((20, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(images[0].permute(1, 2, 0), np.asarray(resized)[:, 6:14])
    assert (images[1] == 77).all()


def test_val_is_the_test_part_where_there_is_no_test(image_folder, config):
    expected = load_data(config(root=str(image_folder))).test.images
    (image_folder / "test").rename(image_folder / "val")
    assert torch.equal(load_data(config(root=str(image_folder))).test.images, expected)


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_image_is_named(image_folder, config, cache):
    damaged = image_folder / "train/dog/3.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    chosen = config(root=str(image_folder), cache=cache, workers=1)
    message = ""
    # Not pytest.raises: it keeps the traceback, and with it the worker process.
    try:
        list(loaders(load_data(chosen), chosen, seed=0).train)
    except UserError as error:
        message = str(error)
    assert str(damaged) in message
    assert "\n" not in message


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_images_are_left_out_by_choice(image_folder, config, cache):
    def load():
        chosen = config(root=str(image_folder), cache=cache, damaged="skip", size=8)
        return load_data(chosen), loaders(load_data(chosen), chosen, seed=0)

    whole, _ = load()
    assert whole.damaged == ()
    damaged = [image_folder / name for name in ("test/cat/1.png", "train/dog/3.png")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    splits, made = load()
    assert sorted(splits.damaged) == [str(path) for path in damaged]
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 5
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert sum(len(labels) for _, labels in made.test) == 3
    if cache:
        assert torch.equal(splits.test.images, whole.test.images[[0, 2, 3]])


def test_a_class_whose_images_are_all_damaged(image_folder, config):
    for path in (image_folder / "test/dog").iterdir():
        path.write_text("")
    with pytest.raises(UserError, match=r"without images: dog \(left out: 2 damaged images\)"):
        load_data(config(root=str(image_folder), damaged="skip"))


# What lies in folders besides


def litter(root):
    """What notebooks, file managers, unpackers and network drives leave."""
    image = (root / "train/cat/0.png").read_bytes()
    for part in ("train", "test"):
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "cat/.ipynb_checkpoints/deep"):
            (root / part / name).mkdir(parents=True)
            (root / part / name / "0-checkpoint.png").write_bytes(image)
        for name in (".DS_Store", "dog/.DS_Store", "dog/Thumbs.db", "cat/desktop.ini"):
            (root / part / name).write_bytes(b"remnant")
        (root / part / "cat/._0.png").write_bytes(b"a Mac's second half of 0.png")
    (root / ".cache").mkdir()


def link_around(root):
    """Links to folders that are read anyway, or would be entered for ever."""
    for part in ("train", "test"):
        links = {"cat/up": "..", "cat/top": "../..", "cat/here": ".", "cat/other": "../dog"}
        links |= {"up": "..", "here": "."}
        for name, target in links.items():
            (root / part / name).symlink_to(target)


@pytest.mark.parametrize("change", [litter, link_around])
def test_what_is_not_data_changes_nothing(image_folder, config, change):
    before = load_data(config(root=str(image_folder)))
    change(image_folder)
    after = load_data(config(root=str(image_folder)))
    assert after.class_names == ("cat", "dog")
    assert after.left_out == {}
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert torch.equal(new.images, old.images)
        assert torch.equal(new.labels, old.labels)


def test_folders_within_classes_and_links_to_elsewhere_are_read(
    image_folder, config, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (image_folder / "train/dog").rename(elsewhere / "dogs")
    (image_folder / "train/dog").symlink_to(elsewhere / "dogs")
    (image_folder / "train/cat/a").mkdir()
    (image_folder / "train/cat/5.png").rename(image_folder / "train/cat/a/5.png")
    (image_folder / "train/cat/b").symlink_to("a")  # its images are read already
    splits = load_data(config(root=str(image_folder), cache=False))
    (image_folder / "train/cat/b").unlink()
    reference = ImageFolder(str(image_folder / "train"))
    assert list(splits.train.paths) == [path for path, _ in reference.samples]
    assert splits.train.labels.tolist() == reference.targets == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    "suffix, kind",
    [("gif", "GIF"), ("jfif", "JPEG"), ("jpe", "JPEG"), ("JPEG", "JPEG"), ("Png", "PNG")],
)
def test_every_suffix_of_the_formats(image_folder, config, suffix, kind):
    path = image_folder / "train/cat/0.png"
    image = Image.open(path)
    path.unlink()
    image.save(path.with_suffix(f".{suffix}"), kind)
    decoded = np.asarray(Image.open(path.with_suffix(f".{suffix}")).convert("RGB"))
    images = load_data(config(root=str(image_folder))).train.images
    assert len(images) == 12
    assert np.array_equal(images[0].permute(1, 2, 0), decoded)


def test_other_files_are_named_and_counted(image_folder, config, command, tmp_path):
    other = ["train/cat/0.heic", "train/dog/notes.txt", "test/dog/1.svg"]
    outside = ["train/7.png", "test/8.jpg"]
    for name in (*other, *outside):
        (image_folder / name).write_bytes(b"")
    (image_folder / "train/labels.csv").write_text("no image, and not where images are\n")
    splits = load_data(config(root=str(image_folder)))
    assert splits.left_out.keys() == {str(image_folder / name) for name in (*other, *outside)}
    assert splits.damaged == ()
    settings = ["data=imagefolder", "data.size=8", "data.batch_size=4", "trainer.epochs=0"]
    settings += [f"data.root={image_folder}", "trainer.device=cpu", "quant=none"]
    trained = command("train.py", *settings, "hydra.run.dir=run")
    assert f"suffix, left out: 3 ({image_folder}/train/cat/0.heic, " in trained.out
    assert "images outside of class folders, left out: 2" in trained.out
    measured = command("eval.py", "checkpoint=run")
    assert "left out: 3" in measured.out and "left out: 2" in measured.out


def test_unlabelled_test_part(image_folder, config):
    expected = load_data(config(root=str(image_folder))).test.images
    (image_folder / "test").rename(image_folder / "val")
    for name in ("test", "test/images"):  # as of ImageNet, and of others
        (image_folder / name).mkdir()
        shutil.copy(image_folder / "val/cat/0.png", image_folder / name / "1.png")
        splits = load_data(config(root=str(image_folder)))
        assert torch.equal(splits.test.images, expected)
        (why,) = splits.left_out.values()
        assert str(image_folder / "val") in why


def twice(root):
    (root / "train/eel").symlink_to("dog")
    (root / "test/eel").symlink_to("dog")


def other_suffix(root):
    for path in (root / "train/dog").iterdir():
        path.rename(path.with_suffix(".heic"))


def unlabelled(root):
    shutil.rmtree(root / "test/dog")
    (root / "test/cat").rename(root / "test/.cat")


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def empty(*names):
    return lambda root: [path.unlink() for name in names for path in (root / name).rglob("*.png")]


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("train"), "no folder train/"),
        (remove("test"), "neither a folder test/ nor val/"),
        (remove("train/cat", "train/dog"), "train has no class folders"),
        (empty("train/dog"), "train has class folders without images: dog"),
        (empty("test/cat"), "test has class folders without images: cat"),
        (empty("train"), "train has no images"),
        (remove("test/dog"), "differ; only in one of them: dog"),
        (twice, "train/dog and .*train/eel are the same folder"),
        (
            other_suffix,
            r"images: dog \(left out: 6 files that are not images by their suffix\); add",
        ),
        (unlabelled, "test has no class folders: .* belong into .*/test/CLASS or .*/val/CLASS"),
    ],
)
def test_layout_errors(image_folder, config, change, message):
    change(image_folder)
    with pytest.raises(UserError, match=message) as caught:
        load_data(config(root=str(image_folder)))
    assert "\n" not in str(caught.value)


def test_root_errors(tmp_path, config):
    with pytest.raises(UserError, match=r"data\.root=PATH"):
        load_data(config(root=None))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_data(config(root=str(tmp_path / "nowhere")))


def test_too_many_pixels_to_cache(image_folder, config, monkeypatch):
    monkeypatch.setattr(folder, "MAX_CACHE_BYTES", 16 * 3 * 8 * 8)
    load_data(config(root=str(image_folder)))
    with pytest.raises(UserError, match=r"data\.cache=false"):
        load_data(config(root=str(image_folder), size=9))
    load_data(config(root=str(image_folder), size=9, cache=False))


@pytest.fixture
def uncached(image_folder, config):
    def make(seed=0, **changes):
        processes = {key: changes.pop(key) for key in ("rank", "world_size") if key in changes}
        chosen = config(root=str(image_folder), cache=False, **changes)
        return loaders(load_data(chosen), chosen, seed, **processes)

    return make


def test_uncached_evaluation_is_resize_and_centre_crop(uncached, image_folder, config):
    made = uncached(val_fraction=0.5)
    images, labels = epoch_of(made.test)
    reference = ImageFolder(str(image_folder / "test"))
    normalize = Normalize(config().mean, config().std)
    expected = [
        normalize(tv.to_tensor(tv.center_crop(tv.resize(image, int(8 / 0.875)), [8, 8])))
        for image, _ in reference
    ]
    torch.testing.assert_close(images, torch.stack(expected))
    assert labels.tolist() == reference.targets
    assert torch.equal(epoch_of(made.val, 0)[0], epoch_of(made.val, 1)[0])
    assert epoch_of(made.val)[1].bincount().tolist() == [3, 3]


def test_uncached_epoch_depends_on_seed_and_epoch_only(uncached):
    train = uncached().train
    states = torch.get_rng_state(), random.getstate()
    first, labels = epoch_of(train)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert first.shape == (12, 3, 8, 8)
    with_workers = uncached(workers=2).train
    later = epoch_of(with_workers, epoch=1)[0]
    assert torch.equal(epoch_of(with_workers)[0], first)
    assert torch.equal(epoch_of(with_workers)[1], labels)
    assert torch.equal(epoch_of(train, epoch=1)[0], later)
    assert not torch.equal(later, first)
    assert not torch.equal(epoch_of(uncached(seed=1).train)[0], first)


def test_uncached_images_are_augmented_each_in_its_own_way(uncached, image_folder):
    for path in (image_folder / "train").rglob("*.png"):
        shutil.copy(image_folder / "test/cat/0.png", path)
    images, _ = epoch_of(uncached().train)
    assert len(images.unique(dim=0)) == 12


def test_uncached_processes_share_the_batches_of_one(uncached):
    ranks = [uncached(rank=rank, world_size=2).train for rank in range(2)]
    for (x, y), (x0, y0), (x1, y1) in zip(uncached().train, *ranks, strict=True):
        assert torch.equal(x, torch.cat((x0, x1)))
        assert torch.equal(y, torch.cat((y0, y1)))


def test_uncached_part_lists_its_files(image_folder, config):
    splits = load_data(config(root=str(image_folder), cache=False))
    assert isinstance(splits.test, ImageFiles)
    assert [path for path, _ in ImageFolder(str(image_folder / "test")).samples] == list(
        splits.test.paths
    )
