"""From a data set to the loaders of a run."""

from __future__ import annotations

import torch

from dqnet.config import DataConfig
from dqnet.data.array_loader import ArrayLoader
from dqnet.data.file_loader import FileLoader
from dqnet.data.image_shards import ImageShards
from dqnet.data.loader import Loader, Loaders
from dqnet.data.order import BatchOrder
from dqnet.data.shard_order import ShardOrder
from dqnet.data.splits import ImageArray, Part, Splits
from dqnet.data.stratify import stratified_split
from dqnet.errors import UserError

#: training images to calibrate on where no validation part was kept
CALIBRATION_IMAGES = 5000


def loaders(
    splits: Splits,
    config: DataConfig,
    seed: int,
    *,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    observed_images: int = 512,
) -> Loaders:
    """Batch a data set for training and evaluation.

    Images in memory are put on ``device`` whole (N x C x H x W bytes per part); image files are
    decoded by ``config.workers`` processes per loader.

    Args:
        splits: from :func:`dqnet.data.load_data`.
        config: ``batch_size`` is over all processes; ``val_fraction`` of the training images, the
            same ones for every seed, becomes ``val``, which is evaluated without augmentation.
        seed: of the training order and augmentation.
        device: of the batches; ``None``: the CPU.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes.
        observed_images: how many of the training images quantizers are calibrated on.

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

    def loader(part: Part, indices: torch.Tensor, seed: int | None = None) -> Loader:
        if len(indices) < world_size:
            raise UserError(f"{len(indices)} images for {world_size} processes: start fewer")
        place = {"rank": rank, "world_size": world_size}
        if isinstance(part, ImageShards):
            order = ShardOrder(part.shard, indices, config.batch_size, seed, **place)
        else:
            order = BatchOrder(indices, config.batch_size, seed, **place)
        mean, std = list(config.mean), list(config.std)
        if isinstance(part, ImageArray):
            return ArrayLoader(
                part,
                order,
                mean=mean,
                std=std,
                crop_padding=config.crop_padding,
                flip=config.flip,
            )
        return FileLoader(
            part,
            order,
            size=config.size,
            mean=mean,
            std=std,
            flip=config.flip,
            workers=config.workers,
            device=device,
        )

    train, test = _on_device(splits.train, device), _on_device(splits.test, device)
    val = None if val_indices is None else loader(train, val_indices)
    return Loaders(
        train=loader(train, train_indices, seed),
        val=val,
        test=loader(test, torch.arange(len(test))),
        calibration=(
            loader(train, _some(train_indices, CALIBRATION_IMAGES)) if val is None else val
        ),
        # Each process brings as many as the others.
        observed=loader(
            train, _some(train_indices, max(observed_images // world_size, 1) * world_size)
        ),
    )


def _some(indices: torch.Tensor, count: int) -> torch.Tensor:
    """The same ``count`` of them every time, in their order."""
    fixed = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(indices), generator=fixed)[:count]
    return indices[drawn.sort().values]


def _on_device(part: Part, device: torch.device) -> Part:
    if isinstance(part, ImageArray):
        return ImageArray(part.images.to(device), part.labels.to(device))
    return part
