"""Checkpoints: written atomically, read without running code, and the run they belong to."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from dqnet.circumstances import is_circumstance
from dqnet.config import TrainConfig, flatten
from dqnet.data import Splits
from dqnet.errors import UserError
from dqnet.processes import is_main
from dqnet.runtime.files import write_atomically
from dqnet.training.tables import print_line
from dqnet.training.weights import read_checkpoint

FORMAT = 1
#: what every checkpoint has, and what older ones lack
NEEDED = {"config": dict, "epoch": int, "num_classes": int, "image_shape": list}
OPTIONAL = {"class_names": list, "images": dict, "cost_options": dict}


def save_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint, as :func:`~dqnet.runtime.files.write_atomically` does."""
    if not is_main():  # spared the copy
        return
    # Not straight into the file: PyTorch's writer hides why the system refused it.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(
        path, lambda temporary: temporary.write_bytes(buffer.getbuffer()) and None, previous
    )


def load_checkpoint(path: Path, cascades: bool = False) -> dict[str, Any]:
    """Reads one of this project's checkpoints.

    Args:
        path: the file.
        cascades: whether it may be a cascade, which holds the ``content`` of its passes.

    Raises:
        UserError: if the file is missing, damaged, somebody else's, or a cascade where none may be.
    """
    content = read_checkpoint(path)
    _check_content(content, path)
    if "cascade" in content and not cascades:
        raise UserError(f"{path} is a cascade: it is evaluated, not trained or searched")
    # PyTorch's reader takes no notice of a changed byte.
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise UserError(f"{path} is damaged ({damaged})")
    return {"ema": None, "wandb_id": None} | content


def _check_content(content: Any, path: Path) -> None:
    """Raises UserError unless it is that of a checkpoint, or of a cascade of such."""
    if isinstance(content, dict) and "cascade" in content:
        for key in ("first", "second"):
            if key == "first" or content.get(key) is not None:
                _check_content(content.get(key), path)
        return
    if not isinstance(content, dict) or "config" not in content or "model" not in content:
        raise UserError(
            f"{path} was not written by train.py: it has no configuration "
            "(float weights go into model.checkpoint_path)"
        )
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {content.get('format')}; this version reads format {FORMAT}"
        )
    for key, kind in (NEEDED | OPTIONAL).items():
        if key not in content and key in NEEDED:
            raise UserError(f"{path} is not a whole checkpoint: it lacks {key!r}")
        if key in content and not isinstance(content[key], kind):
            found = type(content[key]).__name__
            raise UserError(f"{path} holds a {found} where its {key!r} should be")
    for key, value in flatten(content["config"]).items():
        # train.py stores values. A stranger's interpolation could read the environment.
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path} holds {key}={value}: a checkpoint has values, no references")


def load_newest(folder: Path, console: Console | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, and its path; ``None`` without any.

    That is ``last.pt``; if it is damaged or missing ``previous.pt``, the one before; or
    ``best.pt``, a whole checkpoint too, which is written before the ``last.pt`` of its epoch. After
    a crash between the two it is the newest. To repeat its epoch would not do: where sums are not
    the same each time the epoch may turn out worse, and the best one before it is overwritten.

    The console, if any, is told in one line if ``last.pt`` cannot be read.

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
    if last in errors and console is not None:
        print_line(console, f"warning: {errors[last]}: going back to {newest}")
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
    names = [name for name in sorted(before.keys() | now.keys()) if not is_circumstance(name)]
    differing = [name for name in names if before.get(name) != now.get(name)]
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
        path, content: the checkpoint.
        splits, root: the data set and its folder.
        images: how many each part has, for a run that goes on: with others its batches would be
            others, and its validation part. ``None``: any number.
    """
    where = "the data" if root is None else f"the data in {root}"
    remedy = "name the data it was trained on, data.root=PATH"
    if images is not None:
        remedy = "restore the data, or choose another folder (hydra.run.dir)"
    count, shape, names = splits.num_classes, list(splits.image_shape), list(splits.class_names)
    difference = None
    if count != content["num_classes"]:
        difference = f"classifies {content['num_classes']} classes, {where} has {count}"
    elif names != content.get("class_names", names):
        pairs = zip_longest(content["class_names"], names)
        label, (was, now) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) == 2)
        difference = f"calls class {label} {was!r}, {where} {now!r}"
    elif shape != content["image_shape"]:
        difference = f"is for images of {content['image_shape']}, {where} has {shape}"
    elif images is not None and images != content.get("images", images):
        counts = ", ".join(f"{count} {part}" for part, count in content["images"].items())
        others = ", ".join(map(str, images.values()))
        difference = f"is of a run with {counts} images, {where} has {others}"
    if difference is not None:
        raise UserError(f"{path} {difference}: {remedy}")
