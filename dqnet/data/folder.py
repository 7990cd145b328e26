"""Any data set with one folder per class: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from dqnet.config import DataConfig
from dqnet.data.class_folders import (
    IMAGE_SUFFIXES,
    class_folders,
    files_below,
    images_outside,
    unreadable,
)
from dqnet.data.decode import find_damaged, read_images
from dqnet.data.splits import DAMAGED, ImageArray, ImageFiles, Part, Splits
from dqnet.errors import UserError

#: why files are left out, beside those that are damaged
NO_IMAGE = "files that are not images by their suffix"
OUTSIDE = "images outside of class folders"

MAX_CACHE_BYTES = 8 * 2**30


def load(config: DataConfig) -> Splits:
    """Images under ``config.root``, of ``config.size`` x ``config.size`` pixels, RGB.

    The test part is ``test/``, or ``val/`` (ImageNet's name for it) where ``test/`` is missing or
    has none of the classes. Classes are numbered in alphabetical order.
    :mod:`dqnet.data.class_folders` says what is passed over. ``config.cache`` decodes every file
    once and keeps the pixels. ``config.damaged="skip"`` reads every file beforehand and leaves
    the damaged ones out.

    Raises:
        UserError: a folder is null, missing, unreadable, without classes or without images, the
            classes of the parts differ, a file is damaged, or the pixels to cache are more than
            8 GiB.
    """
    if config.root is None:
        raise UserError("give the folder of the images with data.root=PATH")
    root, skip = Path(config.root).expanduser(), config.damaged == "skip"
    class_names, train, test, left_out = scan(root, skip)
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
        left_out=left_out,
    )


def scan(root: Path, skip: bool) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, dict[str, str]]:
    """The class names, the training and the test files, and what was left out: path → why.

    Args:
        root: with the folders of both parts.
        skip: whether damaged images are looked for and left out.

    Raises:
        UserError: a folder is missing, unreadable, without classes or without images, or the
            classes of the parts differ.
    """
    try:
        train_folder, test_folders = _part_folders(root)
    except PermissionError as error:
        raise unreadable(error) from error
    classes = class_folders(train_folder)
    if not classes:
        raise UserError(f"{train_folder} has no class folders")
    left_out: dict[str, str] = {}
    test_folder, test_classes = _labelled(test_folders, set(classes))
    if test_folder != test_folders[0]:
        left_out[str(test_folders[0])] = f"folder without the classes ({test_folder} is measured)"
    if not test_classes:
        raise UserError(
            f"{test_folder} has no class folders: the images to measure by belong into "
            f"{root}/test/CLASS or {root}/val/CLASS, with the classes of {train_folder}"
        )
    if classes.keys() != test_classes.keys():
        raise UserError(
            f"the classes of {train_folder} and {test_folder} differ; only in one of them: "
            + _few(sorted(classes.keys() ^ test_classes.keys()))
        )
    every = {*classes.values(), *test_classes.values()}
    train, test = (
        _scan_part(folder, list(classes), every, skip, left_out)
        for folder in (train_folder, test_folder)
    )
    return tuple(classes), train, test, left_out


def _part_folders(root: Path) -> tuple[Path, list[Path]]:
    """The training folder, and those that may be the test part."""
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder")
    train_folder = root / "train"
    if not train_folder.is_dir():
        raise UserError(f"{root} has no folder train/ (expected: train/CLASS/* and test/CLASS/*)")
    test_folders = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not test_folders:
        raise UserError(f"{root} has neither a folder test/ nor val/")
    return train_folder, test_folders


def _labelled(folders: Sequence[Path], classes: set[str]) -> tuple[Path, dict[str, Path]]:
    """The first folder with any of the classes: ImageNet's test/ has none, its val/ has all."""
    found = [(folder, class_folders(folder)) for folder in folders]
    return next(((f, names) for f, names in found if names.keys() & classes), found[0])


def _scan_part(
    folder: Path, classes: Sequence[str], every: set[Path], skip: bool, left_out: dict[str, str]
) -> ImageFiles:
    """The files of a part's classes; ``left_out`` is added to.

    Args:
        folder: the part.
        classes: the names of its classes.
        every: the folders of all classes of both parts, without links.
        skip: whether damaged images are left out.
        left_out: path → why.
    """
    found = {name: files_below(folder / name, every) for name in classes}
    paths = [path for images, _ in found.values() for path in images]
    damaged = {paths[i] for i in find_damaged(paths)} if skip else set()
    others = [path for _, files in found.values() for path in files]
    left_out |= dict.fromkeys(images_outside(folder), OUTSIDE)
    left_out |= dict.fromkeys(others, NO_IMAGE) | dict.fromkeys(sorted(damaged), DAMAGED)
    kept = {name: [p for p in images if p not in damaged] for name, (images, _) in found.items()}
    if not paths and not others:
        raise UserError(f"{folder} has no images (looked for {', '.join(IMAGE_SUFFIXES)})")
    empty = [name for name, images in kept.items() if not images]
    if empty:
        gone = {
            "damaged ones": sum(len(found[name][0]) for name in empty),
            "files that are not images by their suffix": sum(len(found[name][1]) for name in empty),
        }
        counted = ", ".join(f"{count} {what}" for what, count in gone.items() if count)
        but = f" (left out: {counted})" if counted else ""
        raise UserError(
            f"{folder} has class folders without images: {_few(empty)}{but}; "
            "add images to them, or remove them from both parts"
        )
    labels = [label for label, images in enumerate(kept.values()) for _ in images]
    return ImageFiles(tuple(p for images in kept.values() for p in images), torch.tensor(labels))


def _cached(files: ImageFiles, size: int) -> Part:
    return ImageArray(read_images(files.paths, size), files.labels)


def _few(names: Iterable[str]) -> str:
    """The names, or the first five of them and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
