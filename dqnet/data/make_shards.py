"""Packs a data set of image files into shards, for data=shards.

python -m dqnet.data.make_shards SOURCE DESTINATION [--shard-size 256] [--skip-damaged]

SOURCE is laid out as for data=imagefolder: train/CLASS/* and test/CLASS/* (or val/). The files are
copied as they are. Training images are shuffled once, so that every shard has images of all
classes; test images keep their order.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqnet.data.folder import scan
from dqnet.data.shards import INFO, PARTS
from dqnet.data.splits import ImageFiles, lines_of_left_out
from dqnet.errors import UserError
from dqnet.standard_output import take_every_character

MEGABYTE = 2**20
#: one name for all in a shard, where readers look for it
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def make_shards(
    source: Path,
    destination: Path,
    shard_size: float = 256,
    skip_damaged: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes the shards of both parts, their indices and, last, ``_info.json``.

    Args:
        source, destination: folders; the latter is empty, and made if need be.
        shard_size: megabytes (2²⁰ bytes) after which the next shard begins.
        skip_damaged: decode every image and leave out those that cannot be.
        tell: told in one line for each reason what was left out.

    Returns:
        The content of ``_info.json``.

    Raises:
        UserError: a folder is not what it should be, or a file cannot be read or written.
    """
    _check(destination, shard_size)  # before anything is read
    class_names, *parts, left_out = scan(source, skip_damaged)
    info = write_shards(class_names, parts, destination, shard_size)
    for line in lines_of_left_out(left_out):
        tell(line)
    return info


def write_shards(
    class_names: Sequence[str],
    parts: Sequence[ImageFiles],
    destination: Path,
    shard_size: float = 256,
) -> dict[str, Any]:
    """Writes the shards of a training and a test part, which need not have every class.

    Arguments, result and errors are those of :func:`make_shards`.
    """
    _check(destination, shard_size)
    info: dict[str, Any] = {"class_names": tuple(class_names), "splits": {}}
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name, files in zip(PARTS, parts, strict=True):
            order = torch.arange(len(files))
            if name == "train":
                order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
            info["splits"][name] = _write(files, order, destination, name, shard_size * MEGABYTE)
        (destination / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or destination}: {error.strerror}") from error
    return info


def _check(destination: Path, shard_size: float) -> None:
    if not shard_size > 0:
        raise UserError(f"--shard-size {shard_size:g} must be above 0")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} is not an empty folder; name another, or remove it")


def _write(
    files: ImageFiles, order: torch.Tensor, destination: Path, name: str, limit: float
) -> dict[str, Any]:
    """Writes one part; returns what ``_info.json`` says of it."""
    shard, offset, size = [], [], []
    names: list[str] = []
    tar: tarfile.TarFile | None = None
    for number, index in enumerate(order.tolist()):
        if tar is None or tar.offset >= limit:
            if tar is not None:
                tar.close()
            names.append(f"{name}-{len(names):05d}.tar")
            tar = tarfile.open(destination / names[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        path = Path(files.paths[index])
        content, suffix = path.read_bytes(), path.suffix.lower()
        shard.append(len(names) - 1)
        offset.append(tar.offset + tarfile.BLOCKSIZE)  # behind the header
        size.append(len(content))
        _add(tar, f"{number:09d}{'.jpg' if suffix in JPEG_SUFFIXES else suffix}", content)
        _add(tar, f"{number:09d}.cls", b"%d" % files.labels[index])
    tar.close()
    columns = {"shard": np.array(shard), "offset": np.array(offset), "size": np.array(size)}
    np.savez(destination / f"{name}.npz", labels=files.labels[order].numpy(), **columns)
    return {
        "name": name,
        "num_samples": len(order),
        "filenames": names,
        "shard_lengths": np.bincount(shard).tolist(),
    }


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.data.make_shards", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", type=Path, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("destination", type=Path, help="folder that does not exist yet")
    parser.add_argument("--shard-size", type=float, default=256, help="megabytes (default: 256)")
    parser.add_argument("--skip-damaged", action="store_true", help="leave damaged images out")
    options = parser.parse_args()
    take_every_character()
    try:
        info = make_shards(**vars(options), tell=print)
    except UserError as error:
        sys.exit(f"error: {error}")
    for name, part in info["splits"].items():
        print(f"{name}: {part['num_samples']} images in {len(part['filenames'])} shards")
    print(f"python train.py data=shards data.root={options.destination}")


if __name__ == "__main__":
    main()
