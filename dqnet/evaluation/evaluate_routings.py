"""One pass over a labelled set that runs every image with many routings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.evaluation.budget import cost_of
from dqnet.measurement import Evaluation, percent
from dqnet.network import QuantizedModel


@dataclass(frozen=True, eq=False)
class Routed:
    """What a network answered with one routing of every image, on the CPU.

    Attributes:
        chosen: uint8 ``[N, L]``: index of each routed layer's width.
        correct: bool ``[N]``: whether the label is the best class.
        losses: float64 ``[N]``: cross-entropy.
        cost: float64 ``[N]``: Bit-FLOPs.
    """

    chosen: Tensor
    correct: Tensor
    losses: Tensor
    cost: Tensor

    @property
    def metrics(self) -> dict[str, float]:
        """Top-1 in per cent, mean loss, Bit-FLOPs of the mean image."""
        return {
            "top1": percent(self.correct),
            "loss": self.losses.mean().item(),
            "bit_flops": self.cost.mean().item(),
        }


@torch.no_grad()
def evaluate_routings(
    model: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], Any],
    own: Evaluation,
    routings: Tensor,
) -> list[Routed]:
    """Runs every image with each of R given routings, but none twice with the same one.

    Args:
        model: a dynamic network; its training mode is restored.
        batches: those of ``own``, in the same order.
        prepare: moves images to where the model is.
        autocast: makes the context of mixed precision.
        own: an evaluation of the same model, whose answers are taken over where a given routing is
            the image's own.
        routings: uint8 ``[R, N, L]``: index of the width of each layer of each image.

    Returns:
        R results, in the order of ``routings``.

    Raises:
        ValueError: if the batches have another number of images than ``routings``.
    """
    training = model.training
    model.eval()
    correct = torch.empty(routings.shape[:2], dtype=torch.bool)
    losses = torch.empty(routings.shape[:2], dtype=torch.float64)
    start = 0
    for images, labels in batches:
        part = slice(start, start + len(images))
        start = part.stop
        # own's routing comes first: what it leads to is known.
        wanted = torch.cat([own.chosen[None, part].to(routings), routings[:, part]])
        runs, index = _distinct(wanted)
        run_correct = torch.empty(len(runs), dtype=torch.bool)
        run_losses = torch.empty(len(runs), dtype=torch.float64)
        run_correct[index[0]], run_losses[index[0]] = own.correct[part], own.losses[part]
        unknown = torch.ones(len(runs), dtype=torch.bool).index_fill_(0, index[0], False)

        images = prepare(images)
        labels = labels.to(images.device)
        for some in unknown.nonzero()[:, 0].split(len(images)):
            which, widths = runs[some, 0].to(images.device), runs[some, 1:].to(images.device)
            routing = F.one_hot(widths, len(model.precisions)).to(images.dtype)
            with autocast():
                logits = model(images[which], routing=routing).logits.float()
            answers = labels[which]
            run_correct[some] = (logits.argmax(1) == answers).cpu()
            loss = F.cross_entropy(logits, answers, reduction="none")
            run_losses[some] = loss.double().cpu()
        correct[:, part], losses[:, part] = run_correct[index[1:]], run_losses[index[1:]]
    model.train(training)
    if start != routings.shape[1]:
        raise ValueError(f"batches of {start} images, routings of {routings.shape[1]}")
    return [
        Routed(routing, hits, loss, cost_of(model, routing))
        for routing, hits, loss in zip(routings, correct, losses, strict=True)
    ]


def _distinct(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of image and routing among ``wanted [R, B, L]``.

    Returns:
        int64 ``[P, 1 + L]``, an image's index and its routing; and int64 ``[R, B]``, where each
        wanted one stands among them.
    """
    count, size, _ = wanted.shape
    images = torch.arange(size).expand(count, size)
    pairs = torch.cat([images[..., None], wanted.long()], 2).flatten(0, 1)
    runs, index = pairs.unique(dim=0, return_inverse=True)
    return runs, index.view(count, size)
