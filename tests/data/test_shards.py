"""Shards: the images of a folder, in an order that lets each process read shards of its own."""

import json
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from dqnet.data import load_data, loaders
from dqnet.data.make_shards import main, make_shards
from dqnet.data.order import BatchOrder
from dqnet.errors import UserError

TWO_FILES = 4000 / 2**20  # megabytes of tar that two of the small images fill


@pytest.fixture
def shards(image_folder, tmp_path):
    make_shards(image_folder, tmp_path / "shards", TWO_FILES)
    return tmp_path / "shards"


@pytest.fixture
def of_shards(config):
    """``of_shards(root, key=value, ...)``: the configuration that reads them."""
    target = "dqnet.data.shards.load"
    return lambda root, **changes: config(_target_=target, root=str(root), cache=False, **changes)


def content(folder):
    """(class, bytes) of every image in a folder of classes, in ImageFolder's order."""
    return [(label, Path(path).read_bytes()) for path, label in ImageFolder(str(folder)).samples]


def test_shards_hold_the_files_and_their_classes(shards, image_folder):
    info = json.loads((shards / "_info.json").read_text())
    assert info["class_names"] == ["cat", "dog"]
    for name, split in info["splits"].items():
        images, labels = {}, {}
        for file, length in zip(split["filenames"], split["shard_lengths"], strict=True):
            with tarfile.open(shards / file) as tar:
                members = tar.getmembers()
                assert len(members) == 2 * length == 4
                for member in members:
                    key, _, kind = member.name.partition(".")
                    into = labels if kind == "cls" else images
                    into[key] = tar.extractfile(member).read()
        stored = [(int(labels[key]), images[key]) for key in sorted(images)]
        assert sorted(stored) == sorted(content(image_folder / name))
        assert split["num_samples"] == len(stored)
        if name == "test":
            assert stored == content(image_folder / name)


def test_timm_reads_them_too(shards, image_folder):
    read = timm.data.create_dataset("wds/set", str(shards), split="test", input_key="jpg;png")
    for (image, label), (wanted, wanted_label) in zip(
        read, ImageFolder(image_folder / "test"), strict=True
    ):
        assert label == wanted_label
        assert image.tobytes() == wanted.tobytes()


def test_test_images_are_those_of_the_folder(shards, image_folder, of_shards, config):
    folder = config(root=str(image_folder), cache=False)
    read = [next(iter(loaders(load_data(c), c, 0).test)) for c in (of_shards(shards), folder)]
    assert torch.equal(read[0][0], read[1][0])
    assert torch.equal(read[0][1], read[1][1])


def test_processes_share_the_batches_of_one(shards, of_shards):
    chosen = of_shards(shards, batch_size=4)

    def made(**place):
        return loaders(load_data(chosen), chosen, 0, **place)

    ranks = [made(rank=rank, world_size=2) for rank in range(2)]
    for part in ("train", "test"):
        for (x, y), *shares in zip(*(getattr(m, part) for m in (made(), *ranks)), strict=True):
            assert torch.equal(torch.cat([share[0] for share in shares]), x)
            assert torch.equal(torch.cat([share[1] for share in shares]), y)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    share=st.sampled_from([1, 2, 3, 4, 8]),
    world_size=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 2),
)
def test_every_image_once_in_an_order_that_processes_do_not_change(
    lengths, share, world_size, epoch
):
    shard = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    indices = torch.arange(len(shard))
    batch_size = share * world_size
    if len(shard) < batch_size:
        return

    def order(rank=0, world_size=1):
        made = BatchOrder(indices, batch_size, 3, rank=rank, world_size=world_size, shard=shard)
        made.epoch = epoch
        return made

    alone = order()
    everything = torch.cat(alone.batches())
    assert len(everything.unique()) == len(everything) == len(shard) // batch_size * batch_size
    ranks = [order(rank, world_size).batches() for rank in range(world_size)]
    for whole, *shares in zip(alone.batches(), *ranks, strict=True):
        assert torch.equal(torch.cat(shares), whole)
    # A shard is read by two processes only where their runs of shards meet.
    read = [set(shard[torch.cat(batches)].tolist()) for batches in ranks]
    assert sum(map(len, read)) <= len(set.union(*read)) + world_size - 1


def test_order_depends_on_seed_and_epoch_only():
    shard = torch.arange(10).repeat_interleave(10)

    def order(seed, epoch, skip=0):
        made = BatchOrder(torch.arange(100), 10, seed, shard=shard)
        made.epoch, made.skip = epoch, skip
        return torch.cat(made.batches()).tolist()

    first = order(1, 0)
    torch.manual_seed(99)
    assert order(1, 0) == first
    assert order(1, 0, skip=3) == first[30:]
    assert len({tuple(o) for o in (first, order(1, 1), order(2, 0))}) == 3


def test_a_batch_comes_from_many_shards():
    shard = torch.arange(32).repeat_interleave(16)
    batches = BatchOrder(torch.arange(512), 32, 0, shard=shard).batches()
    assert min(len(shard[batch].unique()) for batch in batches) > 16


def info(change):
    """``spoil(root)``: replaces the content of ``_info.json``."""

    def spoil(root):
        content = json.loads((root / "_info.json").read_text())
        (root / "_info.json").write_text(json.dumps(change(content)))

    return spoil


def column(name, change):
    """``spoil(root)``: replaces a column of ``train.npz``."""

    def spoil(root):
        with np.load(root / "train.npz") as stored:
            columns = dict(stored)
        np.savez(root / "train.npz", **columns | {name: change(columns[name])})

    return spoil


def flipped(root):
    content = bytearray((root / "train.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / "train.npz").write_bytes(content)


def other(a, i, value):
    a = a.copy()
    a[i] = value
    return a


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (info(lambda i: [1]), "_info.json is damaged"),
        (info(lambda i: {k: v for k, v in i.items() if k != "class_names"}), "'class_names'"),
        (info(lambda i: i | {"class_names": "ab"}), "are to be lists of names"),
        (info(lambda i: i | {"class_names": [1, 2]}), "are to be lists of names"),
        (info(lambda i: i | {"splits": {"train": {}}}), "damaged: 'filenames'"),
        (lambda root: (root / "_info.json").write_bytes(b"\xff{}"), "_info.json is damaged"),
        (lambda root: (root / "train.npz").write_bytes(b"PK\x03\x04" * 9), "is missing or damaged"),
        (flipped, "train.npz is missing or damaged"),
        (column("labels", lambda a: a[:-1]), r"damaged \(shard has shape \[12\]"),
        (column("shard", lambda a: a[:, None]), r"damaged \(shard has shape \[12, 1\]"),
        (column("shard", lambda a: a.astype(float)), "damaged .*float64"),
        (column("offset", lambda a: a - 10**6), r"damaged \(offset is out of range"),
        (column("size", lambda a: -a), r"damaged \(size is out of range"),
        (column("size", lambda a: a.astype(np.uint64) + 2**63), "damaged .*uint64"),
        (column("shard", lambda a: a + 1), r"damaged \(shard is out of range"),
        (column("labels", lambda a: other(a, 0, 2)), r"damaged \(labels is out of range"),
        (column("offset", lambda a: other(a, 2, 2**63 - 1)), "train-00001.tar is missing or not"),
        (column("size", lambda a: other(a, 2, 2**63 - 1)), "train-00001.tar is missing or not"),
        (lambda root: (root / "_info.json").unlink(), "holds no whole set of shards"),
        (lambda root: (root / "_info.json").write_text("{"), "_info.json is damaged"),
        (lambda root: (root / "train.npz").write_text("x"), "train.npz is missing or damaged"),
        (lambda root: (root / "test-00001.tar").unlink(), "test-00001.tar is missing"),
        (lambda root: (root / "test-00001.tar").write_bytes(b"x" * 600), "is missing or not whole"),
    ],
)
def test_sets_that_are_not_whole(shards, of_shards, spoil, message):
    spoil(shards)
    with pytest.raises(UserError, match=message) as caught:
        load_data(of_shards(shards))
    assert str(shards) in str(caught.value)


def test_index_of_other_integers(shards, of_shards):
    spoil = column("labels", lambda a: a.astype(">u2"))
    before = load_data(of_shards(shards)).train.labels
    spoil(shards)
    assert torch.equal(load_data(of_shards(shards)).train.labels, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, "data.root nowhere is not a folder"),
        ({"damaged": "skip"}, "--skip-damaged"),
    ],
)
def test_settings_that_do_not_go_with_shards(shards, of_shards, changes, message):
    with pytest.raises(UserError, match=message):
        load_data(of_shards(**{"root": shards, **changes}))


def test_damaged_image_is_named_or_left_out(image_folder, of_shards, tmp_path):
    (image_folder / "test/cat/0.png").write_bytes(b"no image")
    make_shards(image_folder, tmp_path / "all")
    chosen = of_shards(tmp_path / "all")
    with pytest.raises(UserError, match=r"test-00000\.tar: 000000000"):
        list(loaders(load_data(chosen), chosen, 0).test)
    make_shards(image_folder, tmp_path / "whole", skip_damaged=True)
    assert len(load_data(of_shards(tmp_path / "whole")).test) == 3


def test_command(image_folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_shards", *map(str, arguments)])
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "dqnet.data.make_shards")
            runpy.run_module("dqnet.data.make_shards", run_name="__main__")

    run(image_folder, tmp_path / "new", "--shard-size", TWO_FILES)
    assert "train: 12 images in 6 shards" in capsys.readouterr().out
    for arguments, message in [
        ((image_folder, tmp_path / "new"), "is not an empty folder"),
        ((image_folder, tmp_path / "x", "--shard-size", "0"), "--shard-size 0 must be above 0"),
        ((tmp_path / "nowhere", tmp_path / "x"), "nowhere is not a folder"),
    ]:
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            run(*arguments)
    assert not (tmp_path / "x").exists()


def test_what_lies_in_folders_besides(image_folder, tmp_path, monkeypatch, capsys):
    Image.open(image_folder / "train/cat/0.png").save(image_folder / "train/cat/6.jfif", "JPEG")
    (image_folder / "train/.ipynb_checkpoints").mkdir()
    (image_folder / "train/dog/notes.txt").write_text("no image\n")
    (image_folder / "test").rename(image_folder / "val")
    (image_folder / "test").mkdir()
    monkeypatch.setattr(sys, "argv", ["make_shards", str(image_folder), str(tmp_path / "shards")])
    main()
    printed = capsys.readouterr().out
    assert f"suffix, left out: 1 ({image_folder}/train/dog/notes.txt)" in printed
    assert f"({image_folder}/val is measured), left out: 1 ({image_folder}/test)" in printed
    assert "train: 13 images" in printed and "test: 4 images" in printed
    with tarfile.open(tmp_path / "shards/train-00000.tar") as tar:
        suffixes = [Path(name).suffix for name in tar.getnames()]
    assert sorted(set(suffixes)) == [".cls", ".jpg", ".png"] and suffixes.count(".jpg") == 1
