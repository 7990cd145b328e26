"""One pass over a labelled set that runs every image with many routings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    """What a network answered with R routings of every image, on the CPU.

    Attributes:
        chosen: uint8 ``[R, N, L]``: index of each routed layer's width.
        correct: bool ``[R, N]``: whether the label is the best class.
        losses: float64 ``[R, N]``: cross-entropy.
        cost: float64 ``[R, N]``: Bit-FLOPs.
    """

    chosen: Tensor
    correct: Tensor
    losses: Tensor
    cost: Tensor

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Of each routing: top-1 in per cent, mean loss, Bit-FLOPs of the mean image."""
        return [
            {"top1": percent(hits), "loss": loss.mean().item(), "bit_flops": cost.mean().item()}
            for hits, loss, cost in zip(self.correct, self.losses, self.cost, strict=True)
        ]


@torch.no_grad()
def evaluate_routings(
    model: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], Any],
    own: Evaluation,
    routings: Mapping[str, Tensor],
) -> dict[str, Routed]:
    """Runs every image with all given routings, but never twice with the same one.

    Args:
        model: a dynamic network; its training mode is restored.
        batches: those of ``own``, in the same order.
        prepare: moves images to where the model is.
        autocast: makes the context of mixed precision.
        own: an evaluation of the same model, whose answers are taken over where a given routing is
            the image's own.
        routings: by name, uint8 ``[R, N, L]`` each: index of the width of each layer of each image.

    Raises:
        ValueError: if the batches have another number of images than the routings.
    """
    wanted = torch.cat([*routings.values()])
    correct = torch.empty(wanted.shape[:2], dtype=torch.bool)
    losses = torch.empty(wanted.shape[:2], dtype=torch.float64)
    training = model.training
    model.eval()
    start = 0
    for images, labels in batches:
        part = slice(start, start + len(images))
        start = part.stop
        # own's routing comes first: what it leads to is known.
        runs, index = _distinct(torch.cat([own.chosen[None, part].byte(), wanted[:, part]]))
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
            run_correct[some] = (logits.argmax(1) == labels[which]).cpu()
            loss = F.cross_entropy(logits, labels[which], reduction="none")
            run_losses[some] = loss.double().cpu()
        correct[:, part], losses[:, part] = run_correct[index[1:]], run_losses[index[1:]]
    model.train(training)
    if start != wanted.shape[1]:
        raise ValueError(f"batches of {start} images, routings of {wanted.shape[1]}")
    cost = torch.stack([cost_of(model, routing) for routing in wanted])
    counts = [len(of_name) for of_name in routings.values()]
    parts = zip(*(rows.split(counts) for rows in (wanted, correct, losses, cost)), strict=True)
    return {name: Routed(*part) for name, part in zip(routings, parts, strict=True)}


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
