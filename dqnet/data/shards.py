"""Image sets in tar files, for what does not fit in memory or on one disk.

ROOT holds ``train-00000.tar`` … and ``test-00000.tar`` … in WebDataset's form, which other programs
read as well, and for each part an index of where every image lies:
:mod:`dqnet.data.make_shards` writes them. A shard may be a link to another disk.

With the index any image is read by itself, so order, augmentation, continuing and sharing among
processes are those of every other data set: exact. Readers that stream tar files, WebDataset's and
timm's (``timm.data.create_dataset("wds/...")``) among them, start an epoch anew to continue it,
leave out or repeat images where shards do not divide by processes, and pass over damaged ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from dqnet.config import DataConfig
from dqnet.data.splits import ImageShards, Splits
from dqnet.errors import UserError

#: as timm calls it; written last, so a set without it is not whole
INFO = "_info.json"
PARTS = ("train", "test")
AGAIN = "make the shards again"


def load(config: DataConfig) -> Splits:
    """The shards under ``config.root``, as RGB of ``config.size`` x ``config.size`` pixels.

    Raises:
        UserError: ``root`` is null or holds no whole set of shards, or ``damaged`` is ``skip``.
    """
    if config.root is None:
        raise UserError("give the folder of the shards with data.root=PATH")
    if config.damaged == "skip":
        raise UserError(
            "data.damaged=skip: shards are made without damaged images, "
            "python -m dqnet.data.make_shards --skip-damaged"
        )
    root = Path(config.root).expanduser()
    class_names, *files = _info(root)
    classes = len(class_names)
    parts = [_part(root, *part, classes) for part in zip(PARTS, files, strict=True)]
    return Splits(*parts, classes, class_names, (3, config.size, config.size))


def _info(root: Path) -> list[tuple[str, ...]]:
    """The names of the classes, then those of each part's shards."""
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder")
    path = root / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        lists = [info["class_names"], *(info["splits"][name]["filenames"] for name in PARTS)]
        if not all(isinstance(names, list) and all(map(_is_text, names)) for names in lists):
            raise ValueError("its classes and filenames are to be lists of names")
    except FileNotFoundError as error:
        raise UserError(
            f"{root} holds no whole set of shards: it has no {INFO}; "
            "python -m dqnet.data.make_shards SOURCE DESTINATION makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; {AGAIN}") from error
    return [tuple(names) for names in lists]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _part(root: Path, name: str, files: tuple[str, ...], classes: int) -> ImageShards:
    """A part's images: where they lie, and that no shard is cut off."""
    index = root / f"{name}.npz"
    limits = {"shard": len(files), "offset": math.inf, "size": math.inf, "labels": classes}
    try:
        with np.load(index, allow_pickle=False) as stored:
            columns = {key: stored[key].astype(np.int64, casting="safe") for key in limits}
        for key, column in columns.items():
            if column.shape != columns["labels"].shape or column.ndim != 1 or not column.size:
                raise ValueError(f"{key} has shape {list(column.shape)}")
            if column.min() < 0 or column.max() >= limits[key]:
                raise ValueError(f"{key} is out of range")
    except Exception as error:  # damaged bytes raise whatever they happen to lead to
        raise UserError(f"{index} is missing or damaged ({error}); {AGAIN}") from error
    part = ImageShards(
        paths=tuple(str(root / file) for file in files),
        **{key: torch.from_numpy(column) for key, column in columns.items()},
    )
    lengths = [Path(path).stat().st_size if Path(path).is_file() else -1 for path in part.paths]
    room = torch.tensor(lengths)[part.shard] - part.size  # no sum: it could overflow
    cut = {*part.shard[part.offset > room].tolist()}
    for i, (path, length) in enumerate(zip(part.paths, lengths, strict=True)):
        if length < 0 or i in cut:
            raise UserError(f"the shard {path} is missing or not whole; {AGAIN}")
    return part
