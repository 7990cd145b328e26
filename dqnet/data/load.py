"""From a configuration to a data set, and from a data set to the loaders of a run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import get_type_hints

import torch
from torch import Tensor

from dqnet.config import DataConfig
from dqnet.data.array_loader import ArrayLoader
from dqnet.data.corruption import corrupt
from dqnet.data.file_loader import FileLoader
from dqnet.data.loader import Loader, Loaders
from dqnet.data.order import BatchOrder
from dqnet.data.splits import ImageArray, Part, Splits, stratified_split
from dqnet.errors import UserError, unknown_name
from dqnet.processes import local_main_first
from dqnet.ranges import check_ranges

DAMAGED = ("stop", "skip")
#: training images to calibrate on where no validation part was kept
CALIBRATION_IMAGES = 5000


def load_data(config: DataConfig) -> Splits:
    """Check ``config`` and call the function its ``_target_`` names.

    Raises:
        UserError: a value is out of range, ``mean`` and ``std`` do not fit the images, there is one
            class, or ``_target_`` is not a data set of ``dqnet.data`` (a configuration may come
            with a downloaded checkpoint, which must not choose the code that runs); and whatever
            the function itself cannot do.
    """
    check_ranges(config, "data")
    if config.damaged not in DAMAGED:
        raise unknown_name("data.damaged", config.damaged, DAMAGED)
    load = _resolve(config._target_)
    with local_main_first() if config.download else nullcontext():
        splits = load(config)
    if splits.num_classes < 2:
        raise UserError(f"the data has {splits.num_classes} class; at least 2 can be told apart")
    means, stds, channels = len(config.mean), len(config.std), splits.image_shape[0]
    if not means == stds == channels:
        raise UserError(
            f"data.mean has {means} values and data.std has {stds}, the images have {channels} "
            f"channel{'s' if channels > 1 else ''}"
        )
    return corrupt(splits, config.corruption) if config.corruption else splits


def _resolve(target: str) -> Callable[[DataConfig], Splits]:
    """The function ``(DataConfig) -> Splits`` of a module of ``dqnet.data``."""
    module_name, _, name = target.rpartition(".")
    function = None
    if module_name.startswith("dqnet.data.") and module_name != __name__:
        try:
            function = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("dqnet."):
                raise  # the module exists, a package that it needs does not
    hints = get_type_hints(function) if inspect.isfunction(function) else {}
    if hints != {"config": DataConfig, "return": Splits}:
        raise UserError(
            f"data._target_ {target!r} is not a data set of dqnet.data; "
            "one is 'dqnet.data.digits.load'"
        )
    return function


def loaders(
    splits: Splits,
    config: DataConfig,
    seed: int,
    *,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    observed_images: int = 512,
    searched_images: int = 2000,
) -> Loaders:
    """Batch a data set for training and evaluation.

    Images in memory are put on ``device`` whole (N x C x H x W bytes per part); image files are
    decoded by ``config.workers`` processes per loader.

    Args:
        splits: from :func:`load_data`.
        config: ``batch_size`` is over all processes; ``val_fraction`` of the training images, the
            same ones for every seed, becomes ``val``, which is evaluated without augmentation.
        seed: of the training order and augmentation.
        device: of the batches; ``None``: the CPU.
        rank, world_size: this process, in ``[0, world_size)``, of how many.
        observed_images: how many of the training images quantizers are calibrated on.
        searched_images: how many of the validation images a search chooses by.

    Raises:
        UserError: ``batch_size`` is not a multiple of ``world_size``, a part has fewer images than
            there are processes, the only batch cannot be shared evenly, or ``val_fraction`` leaves
            a part without images.
    """
    if config.batch_size % world_size:
        raise UserError(
            f"data.batch_size={config.batch_size} is not a multiple of the {world_size} processes"
        )
    train_indices, val_indices = torch.arange(len(splits.train)), None
    if config.val_fraction:
        try:
            train_indices, val_indices = stratified_split(splits.train.labels, config.val_fraction)
        except UserError as error:
            raise UserError(f"data.val_fraction: {error}") from error
    images = len(train_indices)
    if world_size <= images < config.batch_size and images % world_size:
        most = images - images % world_size
        raise UserError(
            f"{images} training images make one batch, which {world_size} processes cannot share: "
            f"set data.batch_size to a multiple of {world_size} up to {most}"
        )
    device = torch.device(device or "cpu")

    def loader(part: Part, indices: Tensor, seed: int | None = None) -> Loader:
        if len(indices) < world_size:
            raise UserError(f"{len(indices)} images for {world_size} processes: start fewer")
        place = {"rank": rank, "world_size": world_size, "shard": getattr(part, "shard", None)}
        order = BatchOrder(indices, config.batch_size, seed, **place)
        if isinstance(part, ImageArray):
            return ArrayLoader(part, order, config)
        return FileLoader(part, order, config, device)

    train, test = _on_device(splits.train, device), _on_device(splits.test, device)
    val = None if val_indices is None else loader(train, val_indices)
    # Each process brings as many as the others.
    observed = max(observed_images // world_size, 1) * world_size
    return Loaders(
        train=loader(train, train_indices, seed),
        val=val,
        test=loader(test, torch.arange(len(test))),
        calibration=(
            loader(train, _some(train_indices, CALIBRATION_IMAGES)) if val is None else val
        ),
        observed=loader(train, _some(train_indices, observed)),
        searched=None if val is None else loader(train, _some(val_indices, searched_images)),
    )


def _some(indices: Tensor, count: int) -> Tensor:
    """The same ``count`` of them every time, in their order."""
    fixed = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(indices), generator=fixed)[:count]
    return indices[drawn.sort().values]


def _on_device(part: Part, device: torch.device) -> Part:
    if isinstance(part, ImageArray):
        return replace(part, images=part.images.to(device), labels=part.labels.to(device))
    return part
