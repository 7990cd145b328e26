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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqnet.config import DataConfig
from dqnet.data.image_shards import ImageShards
from dqnet.data.splits import Splits
from dqnet.errors import UserError

#: as timm calls it; written last, so a set without it is not whole
INFO = "_info.json"
PARTS = ("train", "test")


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
    info = _info(root)
    train, test = (_part(root, name, info) for name in PARTS)
    return Splits(
        train=train,
        test=test,
        num_classes=len(info["class_names"]),
        class_names=tuple(info["class_names"]),
        image_shape=(3, config.size, config.size),
    )


def _info(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder")
    try:
        return json.loads((root / INFO).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{root} holds no whole set of shards: it has no {INFO}; "
            "python -m dqnet.data.make_shards SOURCE DESTINATION makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{root / INFO} cannot be read: {error}") from error


def _part(root: Path, name: str, info: dict[str, Any]) -> ImageShards:
    index = root / f"{name}.npz"
    try:
        with np.load(index, allow_pickle=False) as stored:
            columns = {key: torch.from_numpy(stored[key]) for key in stored.files}
        paths = tuple(str(root / file) for file in info["splits"][name]["filenames"])
        part = ImageShards(paths=paths, **columns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is missing or damaged; make the shards again") from error
    ends = torch.zeros(len(paths), dtype=torch.int64)
    ends.scatter_reduce_(0, part.shard, part.offset + part.size, "amax")
    for path, end in zip(paths, ends.tolist(), strict=True):
        if not Path(path).is_file() or Path(path).stat().st_size < end:
            raise UserError(f"the shard {path} is missing or not whole; make the shards again")
    return part
