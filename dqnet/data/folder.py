"""Any data set with one folder per class: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*``.

File managers, notebooks and unpackers leave things behind: ``.ipynb_checkpoints``, ``.DS_Store``,
``__MACOSX``, ``Thumbs.db``. They are neither classes nor images, and are passed over in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from dqnet.config import DataConfig
from dqnet.data.decode import find_damaged, read_images
from dqnet.data.splits import DAMAGED, ImageArray, ImageFiles, Splits
from dqnet.errors import UserError

#: why files are left out, beside those that are damaged
NO_IMAGE = "files that are not images by their suffix"
OUTSIDE = "images outside of class folders"

#: in any case; ``.jpe`` and ``.jfif`` are JPEG, and of ``.gif`` the first picture is taken
IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe")
MAX_CACHE_BYTES = 8 * 2**30
_REMNANTS = {"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"}


def load(config: DataConfig) -> Splits:
    """Images under ``config.root``, of ``config.size`` x ``config.size`` pixels, RGB.

    The test part is ``test/``, or ``val/`` (ImageNet's name for it) where ``test/`` is missing or
    has none of the classes. Classes are numbered in alphabetical order. ``config.cache`` decodes
    every file once and keeps the pixels. ``config.damaged="skip"`` reads every file beforehand and
    leaves the damaged ones out.

    Raises:
        UserError: a folder is null, missing, unreadable, without classes or without images, the
            classes of the parts differ, a file is damaged, or the pixels to cache are more than
            8 GiB.
    """
    if config.root is None:
        raise UserError("give the folder of the images with data.root=PATH")
    root, size = Path(config.root).expanduser(), config.size
    class_names, *parts, left_out = scan(root, config.damaged == "skip")
    if config.cache:
        count = sum(map(len, parts))
        num_bytes = 3 * size**2 * count
        if num_bytes > MAX_CACHE_BYTES:
            raise UserError(
                f"{count} images of {size} x {size} take {num_bytes / 2**30:.1f} GiB in memory; "
                "use data.cache=false or a smaller data.size"
            )
        parts = [ImageArray(read_images(part.paths, size), part.labels) for part in parts]
    return Splits(*parts, len(class_names), class_names, (3, size, size), left_out)


def scan(root: Path, skip: bool) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, dict[str, str]]:
    """The class names, the training and the test files, and what was left out: path → why.

    With ``skip`` damaged images are looked for and left out.

    Raises:
        UserError: a folder is missing, unreadable, without classes or without images, or the
            classes of the parts differ.
    """
    try:
        return _scan(root, skip)
    except OSError as error:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _scan(root: Path, skip: bool) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, dict[str, str]]:
    train = root / "train"
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder")
    if not train.is_dir():
        raise UserError(f"{root} has no folder train/ (expected: train/CLASS/* and test/CLASS/*)")
    if not tests:
        raise UserError(f"{root} has neither a folder test/ nor val/")
    classes = class_folders(train)
    if not classes:
        raise UserError(f"{train} has no class folders")
    # The first one with any of the classes: ImageNet's test/ has none, its val/ has all.
    found = {folder: class_folders(folder) for folder in tests}
    test = next((folder for folder in tests if found[folder].keys() & classes.keys()), tests[0])
    if not found[test]:
        raise UserError(
            f"{test} has no class folders: the images to measure by belong into "
            f"{root}/test/CLASS or {root}/val/CLASS, with the classes of {train}"
        )
    if classes.keys() != found[test].keys():
        raise UserError(
            f"the classes of {train} and {test} differ; only in one of them: "
            + _few(classes.keys() ^ found[test].keys())
        )
    left_out: dict[str, str] = {}
    if test != tests[0]:
        left_out[str(tests[0])] = f"folder without the classes ({test} is measured)"
    every = {*classes.values(), *found[test].values()}
    parts = [_scan_part(folder, list(classes), every, skip, left_out) for folder in (train, test)]
    return tuple(classes), *parts, left_out


def class_folders(part: Path) -> dict[str, Path]:
    """The classes of a part in alphabetical order: name → folder without links.

    A link to a folder that the part lies in is not a class.
    """
    with os.scandir(part) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not _is_remnant(e.name))
    here, folders = part.resolve(), {name: (part / name).resolve() for name in names}
    folders = {name: real for name, real in folders.items() if not here.is_relative_to(real)}
    first: dict[Path, str] = {}
    for name, real in folders.items():
        if first.setdefault(real, name) != name:
            raise UserError(
                f"{part / first[real]} and {part / name} are the same folder: "
                "each class needs a folder of its own"
            )
    return folders


def _scan_part(
    folder: Path, classes: Sequence[str], every: set[Path], skip: bool, left_out: dict[str, str]
) -> ImageFiles:
    """The files of a part's classes; ``left_out``, path → why, is added to.

    ``every`` are the folders of all classes of both parts, without links.
    """
    found = {name: files_below(folder / name, every) for name in classes}
    files = [path for paths in found.values() for path in paths]
    if not files:
        raise UserError(f"{folder} has no images (looked for {', '.join(IMAGE_SUFFIXES)})")
    with os.scandir(folder) as entries:
        beside = sorted(e.path for e in entries if not e.is_dir() and not _is_remnant(e.name))
    left_out |= dict.fromkeys(filter(is_image, beside), OUTSIDE)
    left_out |= {path: NO_IMAGE for path in files if not is_image(path)}
    if skip:
        images = [path for path in files if is_image(path)]
        left_out |= {images[i]: DAMAGED for i in find_damaged(images)}
    kept = {name: [p for p in paths if p not in left_out] for name, paths in found.items()}
    empty = [name for name, paths in kept.items() if not paths]
    if empty:
        reasons = Counter(left_out[path] for name in empty for path in found[name])
        counted = ", ".join(f"{count} {why}" for why, count in reasons.items())
        but = f" (left out: {counted})" if counted else ""
        raise UserError(
            f"{folder} has class folders without images: {_few(empty)}{but}; "
            "add images to them, or remove them from both parts"
        )
    labels = [label for label, paths in enumerate(kept.values()) for _ in paths]
    return ImageFiles(tuple(p for paths in kept.values() for p in paths), torch.tensor(labels))


def files_below(folder: Path, others: set[Path]) -> list[str]:
    """The files below a class's folder, in torchvision's order.

    Links are followed, but not to a folder that is read already, that ``folder`` lies in, or that
    is one of ``others``, which are without links.
    """

    def refuse(error: OSError) -> None:
        raise error

    here = folder.resolve()
    seen, found = set(others), []
    for at, names, files in os.walk(str(folder), onerror=refuse, followlinks=True):
        found += [(at, name) for name in files if not _is_remnant(name)]
        inner, names[:] = sorted(name for name in names if not _is_remnant(name)), []
        for name in inner:
            real = Path(at, name).resolve()
            if real not in seen and not here.is_relative_to(real):
                seen.add(real)
                names.append(name)
    # Of a million files, and not one Path each.
    return [f"{at}{os.sep}{name}" for at, name in sorted(found)]


def is_image(path: str) -> bool:
    """Whether a file is an image by its suffix."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def _is_remnant(name: str) -> bool:
    return name.startswith(".") or name.lower() in _REMNANTS


def _few(names: Iterable[str]) -> str:
    """The names, or the first five of them and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
