"""One pass over a labelled set: what the network answered and what every image cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.costs import CostModel, bit_flops, find_cost
from dqnet.costs.network import full_precision_cost
from dqnet.costs.static import BIT_FLOPS, static_cost
from dqnet.costs.width import mean_width
from dqnet.formats import FULL_PRECISION_BITS, Precision
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan
from dqnet.processes import gathered_parts
from dqnet.runtime.files import write_atomically


@dataclass(frozen=True)
class Evaluation:
    """The results of every image, on the CPU, in the order of the data.

    Attributes:
        labels: int64 ``[N]``.
        top_classes: int64 ``[N, min(5, C)]``: the best classes, the best first.
        top_probabilities: float64 of the same shape: theirs.
        losses: float64 ``[N]``: cross-entropy.
        cost: float64 ``[N]``: Bit-FLOPs; ``None`` for a float model.
        mean_widths: float64 ``[N]``: mean width over the routed layers; ``None`` for a float model.
        chosen: int64 ``[N, L]``: index of each routed layer's width.
        scores: float32 ``[N, L, K]``: the controller's, whatever the routing that was used.
        widths: the K candidates as a user writes them, ``2`` or ``"w2a4"``; empty for a float
            model.
        layers: the network's layers; empty for a float model.
        logits: float32 ``[N, C]``, of a pass of a cascade; ``None``: they were not kept.
    """

    labels: Tensor
    top_classes: Tensor
    top_probabilities: Tensor
    losses: Tensor
    cost: Tensor | None
    mean_widths: Tensor | None
    chosen: Tensor
    scores: Tensor
    widths: tuple[int | str, ...]
    layers: tuple[LayerPlan, ...]
    logits: Tensor | None = None

    @property
    def predictions(self) -> Tensor:
        """int64 ``[N]``: the best class."""
        return self.top_classes[:, 0]

    @property
    def confidence(self) -> Tensor:
        """float64 ``[N]``: the probability of the predicted class."""
        return self.top_probabilities[:, 0]

    @property
    def correct(self) -> Tensor:
        """bool ``[N]``: whether the label is the best class."""
        return self.predictions == self.labels

    @property
    def in_top5(self) -> Tensor:
        """bool ``[N]``: whether the label is among the five best classes."""
        return (self.top_classes == self.labels[:, None]).any(1)

    @property
    def routed(self) -> list[LayerPlan]:
        """The L routed layers."""
        return [layer for layer in self.layers if layer.role == "routed"]

    @property
    def routed_names(self) -> list[str]:
        return [layer.name for layer in self.routed]

    @property
    def full_precision_cost(self) -> float:
        """Bit-FLOPs of the mean image in the layers that ``cost`` leaves out."""
        return full_precision_cost(self.layers)

    @cached_property
    def histogram(self) -> Tensor:
        """int64 ``[L, K]``: how many images ran each routed layer at each width."""
        return F.one_hot(self.chosen, max(len(self.widths), 1)).sum(0)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Percentages, Bit-FLOPs of the mean image and their spread, images at each width."""
        mean = spread = total = None
        if self.cost is not None:
            mean, spread = self.cost.mean().item(), self.cost.std(correction=0).item()
            total = mean + self.full_precision_cost
        return {
            "top1": percent(self.correct),
            "top5": percent(self.in_top5),
            "loss": self.losses.mean().item(),
            "bit_flops": mean,
            "bit_flops_std": spread,
            "bit_flops_total": total,
            "mean_width": (
                FULL_PRECISION_BITS if self.mean_widths is None else self.mean_widths.mean().item()
            ),
            "distinct_routings": len(self.chosen.unique(dim=0)) if self.chosen.shape[1] else 1,
            "images": len(self.labels),
            "width_counts": {
                name: dict(zip(map(str, self.widths), counts, strict=True))
                for name, counts in zip(self.routed_names, self.histogram.tolist(), strict=True)
            },
        }

    def mean_cost(self, by: str | CostModel) -> float | None:
        """What the mean image costs in the quantized layers; ``None`` for a float model."""
        if self.cost is None:
            return None
        model = find_cost(by)
        if model == find_cost(BIT_FLOPS):
            return self.cost.mean().item()
        total = static_cost(self.layers, model)
        for layer, counts in zip(self.routed, self.histogram.tolist(), strict=True):
            for width, images in zip(self.widths, counts, strict=True):
                if images:
                    total += model.layer(layer, Precision.parse(width)) * images / len(self.labels)
        return total

    def columns(self) -> dict[str, Any]:
        """Those of ``per_sample.csv``; routed layers' widths stand under their module names."""
        columns = {
            "index": range(len(self.labels)),
            "label": self.labels,
            "prediction": self.predictions,
            "correct": self.correct.int(),
            "confidence": self.confidence,
            "bit_flops": "" if self.cost is None else self.cost,
        }
        for name, chosen in zip(self.routed_names, self.chosen.t().tolist(), strict=True):
            columns[name] = [self.widths[k] for k in chosen]
        return columns

    def write_csv(self, path: Path) -> None:
        """One row per image."""
        import pandas  # half a second, spared where nothing is written

        table = pandas.DataFrame(self.columns())
        write_atomically(path, partial(table.to_csv, index=False, lineterminator="\r\n"))


def percent(hits: Tensor) -> float:
    """How many of ``hits``, bool ``[N]``, are true, in per cent."""
    # Divided once, so that 8103 of 10000 is 81.03 and not its nearest neighbour.
    return 100 * int(hits.sum()) / len(hits)


def answers(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What an :class:`Evaluation` says of the answers ``[N, C]`` to images with ``labels [N]``."""
    best = logits.topk(min(5, logits.shape[1])).indices
    return {
        "labels": labels,
        "top_classes": best,
        "top_probabilities": logits.softmax(1).gather(1, best).double(),
        "losses": F.cross_entropy(logits, labels, reduction="none").double(),
    }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], Any],
    keep_logits: bool = False,
) -> Evaluation:
    """Runs every batch in evaluation mode, where the routing is the arg-max without noise.

    With several processes each runs its own batches, and all get the results of all images.

    Args:
        model: a converted or a float model; its training mode is restored.
        batches: pairs of images ``[B, C, H, W]`` and labels ``[B]``; at least one image.
        prepare: moves images to where the model is.
        autocast: makes the context of mixed precision.
        keep_logits: whether the evaluation has them.
    """
    quantized = model if isinstance(model, QuantizedModel) else None
    training = model.training
    model.eval()
    collected: list[dict[str, Tensor]] = []
    for images, labels in batches:
        images, labels = prepare(images), labels.to(next(model.parameters()).device)
        with autocast():
            if quantized:
                logits, routing, scores = model(images, with_scores=True)
            else:
                logits = model(images)
                routing = scores = images.new_zeros(len(images), 0, 1)
        logits = logits.float()
        rows = answers(logits, labels) | {
            "chosen": routing.argmax(-1),
            "scores": scores.float(),
        }
        if quantized:
            rows["cost"] = bit_flops(quantized, routing)
            rows["mean_widths"] = mean_width(quantized, routing.double())
        if keep_logits:
            rows["logits"] = logits
        collected.append({name: column.cpu() for name, column in rows.items()})
    model.train(training)
    names = collected[0].keys()
    columns = gathered_parts([torch.cat([rows[name] for rows in collected]) for name in names])
    figures = {"cost": None, "mean_widths": None} | dict(zip(names, columns, strict=True))
    return Evaluation(
        **figures,
        widths=quantized.widths if quantized else (),
        layers=quantized.layers if quantized else (),
    )
