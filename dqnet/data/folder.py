"""Any data set with one folder per class: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from dqnet.config import DataConfig
from dqnet.data.decode import find_damaged, read_images
from dqnet.data.splits import ImageArray, ImageFiles, Part, Splits
from dqnet.errors import UserError

MAX_CACHE_BYTES = 8 * 2**30


def load(config: DataConfig) -> Splits:
    """Images under ``config.root``, of ``config.size`` x ``config.size`` pixels, RGB.

    The test part is ``test/`` or else ``val/`` (ImageNet's name for it). Classes are numbered in
    alphabetical order. ``config.cache`` decodes every file once and keeps the pixels.
    ``config.damaged="skip"`` reads every file beforehand and leaves the damaged ones out.

    Raises:
        UserError: a folder is null, missing, unreadable, without classes or without images, the
            classes of the parts differ, a file is damaged, or the pixels to cache are more than
            8 GiB.
    """
    if config.root is None:
        raise UserError("give the folder of the images with data.root=PATH")
    root, skip = Path(config.root).expanduser(), config.damaged == "skip"
    class_names, train, test, damaged = scan(root, skip)
    size = config.size
    num_bytes = 3 * size**2 * (len(train) + len(test))
    if config.cache and num_bytes > MAX_CACHE_BYTES:
        raise UserError(
            f"{len(train) + len(test)} images of {size} x {size} take {num_bytes / 2**30:.1f} GiB "
            "in memory; use data.cache=false or a smaller data.size"
        )
    return Splits(
        train=_cached(train, size) if config.cache else train,
        test=_cached(test, size) if config.cache else test,
        num_classes=len(class_names),
        class_names=class_names,
        image_shape=(3, size, size),
        damaged=damaged,
    )


def scan(root: Path, skip: bool) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, tuple[str, ...]]:
    """The class names, the training and the test files, and those that were left out if ``skip``.

    Raises:
        UserError: a folder is missing, unreadable, without classes or without images, or the
            classes of the parts differ.
    """
    try:
        train_folder, test_folder = _part_folders(root)
    except PermissionError as error:
        raise _unreadable(error) from error
    class_names, train, damaged_train = _scan_part(train_folder, skip)
    test_class_names, test, damaged_test = _scan_part(test_folder, skip)
    if class_names != test_class_names:
        raise UserError(
            f"the classes of {train_folder} and {test_folder} differ; only in one of them: "
            + _few(sorted(set(class_names) ^ set(test_class_names)))
        )
    return class_names, train, test, damaged_train + damaged_test


def _part_folders(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder")
    train_folder = root / "train"
    if not train_folder.is_dir():
        raise UserError(f"{root} has no folder train/ (expected: train/CLASS/* and test/CLASS/*)")
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_folder is None:
        raise UserError(f"{root} has neither a folder test/ nor val/")
    return train_folder, test_folder


def _scan_part(folder: Path, skip: bool) -> tuple[tuple[str, ...], ImageFiles, tuple[str, ...]]:
    """The class names of a part, its files, and those that were left out if ``skip``."""
    _check_readable(folder)
    try:
        found = ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no class folders") from error
    if not found.samples:
        raise UserError(f"{folder} has no images (looked for {', '.join(found.extensions)})")
    paths, labels = [path for path, _ in found.samples], torch.tensor(found.targets)
    damaged = find_damaged(paths) if skip else []
    left_out = tuple(paths[i] for i in damaged)
    if damaged:
        kept = sorted(set(range(len(paths))) - set(damaged))
        paths, labels = [paths[i] for i in kept], labels[kept]
    counts = labels.bincount(minlength=len(found.classes)).tolist()
    empty = [name for name, count in zip(found.classes, counts, strict=True) if count == 0]
    if empty:
        but = f" (left out: {len(damaged)} damaged ones)" if damaged else ""
        raise UserError(f"{folder} has class folders without images: {_few(empty)}{but}")
    return tuple(found.classes), ImageFiles(tuple(paths), labels), left_out


def _check_readable(folder: Path) -> None:
    """Raises UserError for a folder that cannot be listed, which ImageFolder takes for empty."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    for _ in os.walk(folder, onerror=refuse, followlinks=True):
        pass


def _unreadable(error: OSError) -> UserError:
    return UserError(f"the folder {error.filename} cannot be read: {error.strerror}")


def _cached(files: ImageFiles, size: int) -> Part:
    return ImageArray(read_images(files.paths, size), files.labels)


def _few(names: Iterable[str]) -> str:
    """The names, or the first five of them and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
