"""Checkpoints: written atomically, read without running code, and the run they belong to."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dqnet.circumstances import is_circumstance
from dqnet.config import TrainConfig, flatten
from dqnet.data import Splits
from dqnet.errors import UserError
from dqnet.processes import is_main
from dqnet.runtime.files import write_atomically
from dqnet.training.weights import read_checkpoint

FORMAT = 1
#: what is read of every checkpoint
NEEDED = ("epoch", "ema", "num_classes", "image_shape", "wandb_id")
#: what some of it is, if it is there
KINDS = {"config": dict, "epoch": int, "image_shape": list, "class_names": list, "images": dict}


def save_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint; a crash meanwhile leaves the file that was there.

    Args:
        path: the file.
        content: what it holds.
        previous: where the file that was there goes.

    Raises:
        UserError: if it cannot be written, as when the disk is full.
    """
    if not is_main():  # spared the copy
        return
    # Not straight into the file: PyTorch's writer hides why the system refused it.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(
        path, lambda temporary: temporary.write_bytes(buffer.getbuffer()) and None, previous
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one of this project's checkpoints.

    Raises:
        UserError: if the file is missing, damaged or somebody else's.
    """
    content = read_checkpoint(path)
    if "config" not in content or "model" not in content:
        raise UserError(
            f"{path} was not written by train.py: it has no configuration "
            "(float weights go into model.checkpoint_path)"
        )
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {content.get('format')}; this version reads format {FORMAT}"
        )
    lacking = [key for key in NEEDED if key not in content]
    if lacking:
        raise UserError(f"{path} is not a whole checkpoint: it lacks {lacking[0]!r}")
    for key, kind in KINDS.items():
        if key in content and not isinstance(content[key], kind):
            found = type(content[key]).__name__
            raise UserError(f"{path} holds a {found} where its {key!r} should be")
    for key, value in flatten(content["config"]).items():
        # train.py stores values. A stranger's interpolation could read the environment.
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path} holds {key}={value}: a checkpoint has values, no references")
    _check_sums(path)
    return content


def load_newest(
    folder: Path, warn: Callable[[str], None] = lambda message: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, and its path; ``None`` without any.

    That is ``last.pt``; if it is damaged or missing ``previous.pt``, the one before; or
    ``best.pt``, a whole checkpoint too, which is written before the ``last.pt`` of its epoch. After
    a crash between the two it is the newest. To repeat its epoch would not do: where sums are not
    the same each time the epoch may turn out worse, and the best one before it is overwritten.

    Args:
        folder: the run folder.
        warn: told in one line if ``last.pt`` cannot be read.

    Raises:
        UserError: if there is a checkpoint but none that can be read.
    """
    paths = last, previous, _ = [folder / f"{name}.pt" for name in ("last", "previous", "best")]
    if not any(path.exists() for path in paths):
        return None
    found: dict[Path, dict[str, Any]] = {}
    errors: dict[Path, UserError] = {}
    for path in paths:
        if path == previous and last in found:
            continue
        try:
            found[path] = load_checkpoint(path)
        except UserError as error:
            errors[path] = error
    if not found:
        raise UserError("; ".join(str(errors[path]) for path in paths if path.exists()))
    newest = max(found, key=lambda path: (found[path]["epoch"], found[path].get("step", 0)))
    if last in errors:
        warn(f"{errors[last]}: going back to {newest}")
    return newest, found[newest]


def config_of(content: dict[str, Any], path: Path) -> TrainConfig:
    """The configuration that a checkpoint was trained with."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), content["config"])
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        line = f"{error.full_key}: {str(error).splitlines()[0]}"
        raise UserError(f"{path} holds a configuration of another version: {line}") from error


def check_same_run(path: Path, stored: dict[str, Any], config: TrainConfig) -> None:
    """Raises UserError if a folder's checkpoint was trained with other settings."""
    before, now = flatten(stored), flatten(asdict(config))
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not is_circumstance(key)
    ]
    if differing:
        key = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise UserError(
            f"{path.parent} holds a run with {key}={before.get(key)}, not {now.get(key)}{more}: "
            "choose another (hydra.run.dir, hydra.sweep.dir), or remove that folder"
        )


def check_same_data(
    path: Path,
    content: dict[str, Any],
    splits: Splits,
    root: str | None,
    images: dict[str, int] | None = None,
) -> None:
    """Raises UserError unless a checkpoint's classes and images are those of a data set.

    Args:
        path: the checkpoint.
        content: what it holds.
        splits: the data set.
        root: its folder.
        images: how many each part has, for a run that goes on: with others its batches would be
            others, and its validation part. ``None``: any number.
    """
    where = "the data" if root is None else f"the data in {root}"
    remedy = "name the data it was trained on, data.root=PATH"
    if images is not None:
        remedy = "restore the data, or choose another folder (hydra.run.dir)"
    if splits.num_classes != content["num_classes"]:
        raise UserError(
            f"{path} classifies {content['num_classes']} classes, {where} has "
            f"{splits.num_classes}: {remedy}"
        )
    names = list(splits.class_names)
    for label, (was, now) in enumerate(zip_longest(content.get("class_names", names), names)):
        if was != now:
            raise UserError(f"{path} calls class {label} {was!r}, {where} {now!r}: {remedy}")
    shape = list(splits.image_shape)
    if shape != content["image_shape"]:
        raise UserError(f"{path} is for images of {content['image_shape']}, {where} has {shape}")
    before = content.get("images", images)
    if images is not None and before != images:
        counts = ", ".join(f"{count} {part}" for part, count in before.items())
        raise UserError(
            f"{path} is of a run with {counts} images, {where} has "
            f"{', '.join(map(str, images.values()))}: {remedy}"
        )


def _check_sums(path: Path) -> None:
    """Raises UserError for a changed byte, of which PyTorch's reader takes no notice."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged})")
