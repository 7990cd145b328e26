"""Small pictures of what was classified, and all that ``samples.npz`` says of the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.evaluation.samples import Samples
from dqnet.measurement import Evaluation

#: longest side of a thumbnail, in pixels
MAX_SIDE = 64


class Thumbnails:
    """Collects small pictures of the images that pass by on their way to the network.

    So every image is decoded once, and its picture is exactly what was classified.

    Args:
        mean: of the normalisation that the batches went through, per channel, of pixels in [0, 1].
        std: its standard deviation, per channel.
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


def samples_of(
    evaluation: Evaluation, thumbnails: Thumbnails, class_names: Sequence[str]
) -> Samples:
    """The content of ``samples.npz``, of images that all have gone by."""
    integers = all(isinstance(width, int) for width in evaluation.widths)
    return Samples(
        images=thumbnails.array(),
        labels=evaluation.labels.numpy(),
        predictions=evaluation.predictions.numpy(),
        top5_classes=evaluation.top_classes.numpy(),
        top5_probs=evaluation.top_probabilities.numpy().astype(np.float32),
        # Half precision ends at 65504; a candidate that a layer lacks has a score far below.
        scores=evaluation.scores.clamp(-6e4, 6e4).numpy().astype(np.float16),
        chosen=evaluation.chosen.numpy().astype(np.uint8),
        layers=np.array(evaluation.routed_names, dtype=np.str_),
        widths=np.array(evaluation.widths, dtype=np.uint8 if integers else np.str_),
        class_names=np.array(class_names, dtype=np.str_),
    )
