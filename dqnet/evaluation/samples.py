"""``samples.npz``: the images of an evaluation and what the network made of each, for the report.

A plain NumPy archive, so that a report is drawn without the model and without the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.runtime.files import write_atomically

if TYPE_CHECKING:  # a report reads the file without the parts that compute
    from dqnet.measurement import Evaluation

#: longest side of a thumbnail, in pixels
MAX_SIDE = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """The arrays of ``samples.npz``; N images in the order of ``per_sample.csv``.

    A float model has L = 0 routed layers.

    Attributes:
        images: uint8 ``[N, H, W, C]``, as the network saw them but for size; C is 1 or 3.
        labels, predictions: int64 ``[N]``.
        top5_classes: int64 ``[N, min(5, classes)]``, the best class first.
        top5_probs: float32, likewise: their probabilities.
        scores: float16 ``[N, L, K]``: the controller's, before any budget.
        chosen: uint8 ``[N, L]``: index into ``widths`` of what each layer ran at.
        layers: str ``[L]``: module names of the routed layers.
        widths: uint8 ``[K]``: the candidates; str where one is a pair, ``w2a4``; empty for a
            float model.
        class_names: str ``[classes]``.
    """

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    top5_classes: np.ndarray
    top5_probs: np.ndarray
    scores: np.ndarray
    chosen: np.ndarray
    layers: np.ndarray
    widths: np.ndarray
    class_names: np.ndarray


class Thumbnails:
    """Collects small pictures of the images that pass by on their way to the network.

    So every image is decoded once, and its picture is exactly what was classified.

    Args:
        mean: of the normalisation that the batches went through, per channel, of pixels in [0, 1].
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        self._batches: list[Tensor] = []

    def of(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches; images are ``[B, C, H, W]``, normalised."""
        for images, labels in batches:
            self._batches.append(self._picture(images))
            yield images, labels

    def _picture(self, images: Tensor) -> Tensor:
        pixels = images.float() * self.std.to(images.device) + self.mean.to(images.device)
        longest = max(pixels.shape[2:])
        if longest > MAX_SIDE:
            size = [max(1, round(side * MAX_SIDE / longest)) for side in pixels.shape[2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()

    def array(self) -> np.ndarray:
        """All that went by: uint8 ``[N, H, W, C]``, the longer side at most ``MAX_SIDE``."""
        return torch.cat(self._batches).numpy()


def write_samples(
    path: Path, evaluation: Evaluation, thumbnails: Thumbnails, class_names: Sequence[str]
) -> None:
    """Writes ``samples.npz``, atomically."""
    integers = all(isinstance(width, int) for width in evaluation.widths)
    samples = Samples(
        images=thumbnails.array(),
        labels=evaluation.labels.numpy(),
        predictions=evaluation.predictions.numpy(),
        top5_classes=evaluation.top_classes.numpy(),
        top5_probs=evaluation.top_probabilities.numpy().astype(np.float32),
        scores=evaluation.scores.numpy().astype(np.float16),
        chosen=evaluation.chosen.numpy().astype(np.uint8),
        layers=np.array(evaluation.routed_names, dtype=np.str_),
        widths=np.array(evaluation.widths, dtype=np.uint8 if integers else np.str_),
        class_names=np.array(class_names, dtype=np.str_),
    )

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, NumPy would add .npz to it
            np.savez_compressed(file, **vars(samples))

    write_atomically(path, write)


def read_samples(path: Path) -> Samples:
    """What :func:`write_samples` wrote; no code in the file is run."""
    with np.load(path, allow_pickle=False) as arrays:
        read = {field.name: arrays[field.name] for field in fields(Samples)}
    classes = read["top5_classes"]
    if classes.dtype == np.int16:  # earlier versions wrote it; classes from 32,768 on are negative
        read["top5_classes"] = classes.astype(np.uint16).astype(np.int64)
    return Samples(**read)
