"""Batches of images that are decoded from files in every epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dqnet.config import DataConfig
from dqnet.data.loader import Loader
from dqnet.data.order import BatchOrder, mixed_seed
from dqnet.data.splits import ImageFiles, ImageShards
from dqnet.errors import UserError


class FileLoader(Loader):
    """Decodes and transforms in processes of its own, with timm's ImageNet transforms.

    Training (an order with a seed): random resized crop, colour jitter and, if ``config.flip``,
    random mirroring. Evaluation: resize the shorter side to ``size / 0.875`` and crop the centre.
    """

    def __init__(
        self,
        files: ImageFiles | ImageShards,
        order: BatchOrder,
        config: DataConfig,
        device: torch.device,
    ) -> None:
        super().__init__(order)
        self.device = device
        transform = create_transform(
            config.size,
            is_training=order.seed is not None,
            hflip=0.5 if config.flip else 0.0,
            mean=tuple(config.mean),
            std=tuple(config.std),
        )
        self.batches = DataLoader(
            _TransformedBatches(files, transform, order.seed),
            sampler=order,
            batch_size=None,  # the order yields whole batches
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            pin_memory=self.device.type == "cuda",
            # Without a generator of its own the DataLoader draws from the global one.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            if isinstance(batch, str):
                raise UserError(batch)
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield images, labels


class _TransformedBatches(Dataset):
    """Maps image indices and epoch to a batch, or to the message of the error that a file caused.

    The message is a value because the DataLoader turns a raised error into a page of traceback.
    """

    def __init__(
        self,
        files: ImageFiles | ImageShards,
        transform: Callable[[Image.Image], Tensor],
        seed: int | None,
    ) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: tuple[list[int], int]) -> tuple[Tensor, Tensor] | str:
        indices, epoch = key
        try:
            images = torch.stack([self._image(index, epoch) for index in indices])
        except UserError as error:
            return str(error)
        return images, self.files.labels[indices]

    def _image(self, index: int, epoch: int) -> Tensor:
        image = self.files.image(index)
        if self.seed is None:
            return self.transform(image)
        with _global_seed(mixed_seed(self.seed, epoch, index)):
            return self.transform(image)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators that timm's transforms draw from, then put them back."""
    python_state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        # torch.manual_seed would queue a CUDA seeding at every call until CUDA starts.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
