"""A cascade's answers, from those that both of its passes give to all images.

Which images run twice changes neither pass, so one pass of each over the data is enough for every
threshold, and for the controls, in which other images run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.cascade import VIEWS, Cascade, threshold_of
from dqnet.costs import CostModel
from dqnet.costs.network import full_precision_cost
from dqnet.costs.static import static_cost
from dqnet.evaluation.bootstrap import mean_intervals
from dqnet.evaluation.controls import SEEDS, derangement
from dqnet.evaluation.samples import NOT_RUN
from dqnet.formats import Precision, as_written, ascending
from dqnet.measurement import Evaluation, answers, evaluate
from dqnet.plan import LayerPlan

#: of the calibration images that run twice, one point each; others are less or more confident
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class CascadeEvaluation(Evaluation):
    """An evaluation of a cascade.

    ``chosen [N, L]`` is of the quantized layers of both passes, whether routed or not, and
    ``widths`` begins with ``NOT_RUN``. Mean widths are summed over the passes that an image made.

    Attributes:
        once, twice: what each image gets if it runs once and if it runs twice: the answers of the
            cascade, the other attributes of the first pass and of the second alone.
        again: bool ``[N]``: which images ran twice.
        names: of the L layers.
        reused: those whose outputs the second pass takes over from the first one.
    """

    once: Evaluation
    twice: Evaluation
    again: Tensor
    names: tuple[str, ...]
    reused: tuple[LayerPlan, ...]

    @property
    def share(self) -> float:
        """Of the images that ran twice."""
        return self.again.double().mean().item()

    @property
    def routed_names(self) -> list[str]:
        return list(self.names)

    @property
    def full_precision_cost(self) -> float:
        again = self.twice.full_precision_cost - full_precision_cost(self.reused)
        return self.once.full_precision_cost + self.share * again

    def mean_cost(self, by: str | CostModel) -> float:
        own = self.once.mean_cost(by)
        if not self.again.any():
            return own
        again = subset(self.twice, self.again).mean_cost(by) - static_cost(self.reused, by)
        return own + self.share * again

    def columns(self) -> dict[str, Any]:
        before = {"passes": 1 + self.again.int(), "first_confidence": self.once.confidence}
        columns = list(super().columns().items())
        place = len(columns) - len(self.names)
        return dict(columns[:place]) | before | dict(columns[place:])


Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate_passes(
    model: nn.Module,
    batches: Batches,
    again: Batches,
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], Any],
) -> Evaluation:
    """As :func:`dqnet.measurement.evaluate`, of a network or a cascade, with its logits.

    Args:
        model: a converted network, a float one, or a cascade.
        batches: are gone through once.
        again: the same, gone through once for each further pass of a cascade.
        prepare: moves images to where the model is.
        autocast: makes the context of mixed precision.
    """
    if not isinstance(model, Cascade):
        return evaluate(model, batches, prepare, autocast, keep_logits=True)
    first = evaluate_passes(model.first, batches, again, prepare, autocast)
    seen = Viewed(again, model.view)
    second = evaluate_passes(model.second_network, seen, seen, prepare, autocast)
    once, twice = both_answers(model, first, second)
    return cascade_evaluation(once, twice, is_unsure(model.threshold.item(), once))


def is_unsure(threshold: float, once: Evaluation) -> Tensor:
    """bool ``[N]``: which images run twice, by the answers of the first pass."""
    return once.logits.exp().amax(1) <= threshold


class Viewed:
    """Batches as a second pass sees them, as often as they are gone through.

    Args:
        batches: pairs of images ``[B, C, H, W]`` and labels.
        view: one of :data:`dqnet.cascade.VIEWS`.
    """

    def __init__(self, batches: Batches, view: str | None) -> None:
        self.batches, self.view = batches, VIEWS[view]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.view(images), labels) for images, labels in self.batches)


def both_answers(
    cascade: Cascade, first: Evaluation, second: Evaluation
) -> tuple[Evaluation, Evaluation]:
    """``once`` and ``twice`` of all images, from evaluations of both passes with their logits."""
    z = cascade.tempered(first.logits, 0)
    both = cascade.combined(z, cascade.tempered(second.logits, 1))
    labels = first.labels
    return (
        replace(first, logits=z, **answers(z, labels)),
        replace(second, logits=both, **answers(both, labels)),
    )


def cascade_evaluation(
    once: Evaluation,
    twice: Evaluation,
    again: Tensor,
    reused: tuple[LayerPlan, ...] = (),
) -> CascadeEvaluation:
    """The evaluation in which the images of ``again``, bool ``[N]``, run twice."""

    def pick(name: str) -> Tensor:
        of_one, of_two = getattr(once, name), getattr(twice, name)
        return torch.where(again[:, None] if of_one.ndim == 2 else again, of_two, of_one)

    names, widths, chosen = _layers_of(once, twice, again)
    picked = ("labels", "top_classes", "top_probabilities", "losses", "logits")
    return CascadeEvaluation(
        **{name: pick(name) for name in picked},
        cost=once.cost + again * (twice.cost - static_cost(reused)),
        mean_widths=once.mean_widths + again * twice.mean_widths,
        chosen=chosen,
        scores=torch.empty(*chosen.shape, 0),
        widths=widths,
        layers=(*once.layers, *twice.layers),
        once=once,
        twice=twice,
        again=again,
        names=names,
        reused=reused,
    )


def _layers_of(
    once: Evaluation, twice: Evaluation, again: Tensor
) -> tuple[tuple[str, ...], tuple[int | str, ...], Tensor]:
    """``names``, ``widths`` and ``chosen`` of both passes."""
    passes = [_ran_at(once), _ran_at(twice)]
    own = (width for _, columns in passes for width, _ in columns)
    precisions = ascending(Precision.parse(w) for widths in own for w in widths if w != NOT_RUN)
    widths = (NOT_RUN, *as_written(precisions))
    columns = []
    for number, (_, of_pass) in enumerate(passes):
        for candidates, chosen in of_pass:
            column = torch.tensor([widths.index(w) for w in candidates])[chosen]
            columns.append(column * again if number else column)
    names = [
        f"{of}.{name}"
        for of, (own, _) in zip(("first", "second"), passes, strict=True)
        for name in own
    ]
    return tuple(names), widths, torch.stack(columns, 1)


def _ran_at(
    evaluation: Evaluation,
) -> tuple[list[str], list[tuple[tuple[int | str, ...], Tensor]]]:
    """The quantized layers' names, and of each its candidates and which one images ran: ``[N]``."""
    count = len(evaluation.labels)
    routed = dict(zip(evaluation.routed_names, evaluation.chosen.unbind(1), strict=True))
    if isinstance(evaluation, CascadeEvaluation):
        return list(routed), [(evaluation.widths, chosen) for chosen in routed.values()]
    layers = [layer for layer in evaluation.layers if layer.precisions]
    columns = []
    for layer in layers:
        if layer.name in routed:
            columns.append((evaluation.widths, routed[layer.name]))
        else:
            columns.append((as_written(layer.precisions), torch.zeros(count, dtype=torch.long)))
    return [layer.name for layer in layers], columns


def subset(evaluation: Evaluation, which: Tensor) -> Evaluation:
    """The evaluation of the images of ``which``, bool ``[N]``, alone."""
    if isinstance(evaluation, CascadeEvaluation):
        once, twice = subset(evaluation.once, which), subset(evaluation.twice, which)
        return cascade_evaluation(once, twice, evaluation.again[which], evaluation.reused)
    tensors = {
        field.name: value[which]
        for field in fields(evaluation)
        if isinstance(value := getattr(evaluation, field.name), Tensor)
    }
    return replace(evaluation, **tensors)


def before_routing(layers: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """What two passes of one dynamic network have in common: the layers before a routed one.

    Args:
        layers: in the order of execution; none of these layers reads a routed one's output.
    """
    return layers[: [layer.role for layer in layers].index("routed")]


def shuffled(evaluation: CascadeEvaluation) -> list[CascadeEvaluation]:
    """One for each seed of the controls: as many images run twice, but others."""
    orders = (derangement(len(evaluation.again), seed) for seed in SEEDS)
    return [with_again(evaluation, evaluation.again[order]) for order in orders]


def with_again(evaluation: CascadeEvaluation, again: Tensor) -> CascadeEvaluation:
    """The same passes, but the images of ``again``, bool ``[N]``, run twice."""
    return cascade_evaluation(evaluation.once, evaluation.twice, again, evaluation.reused)


def cascade_point(evaluation: CascadeEvaluation) -> dict[str, Any]:
    """What a cascade leads to.

    Returns:
        ``share`` of the images that run twice; ``bit_flops`` of the mean image, their standard
        deviation over images, and ``bit_flops_total`` with full-precision layers, which run
        twice as well; ``top1``, ``loss``. ``shuffled_top1`` is the mean over permutations of
        which images run twice: the same cost without the match. ``instance_gain`` is top-1
        less that, with its bootstrap interval over images.
    """
    own = evaluation.metrics
    hits = torch.stack([other.correct for other in shuffled(evaluation)]).double().mean(0)
    (gain,) = mean_intervals((100 * (evaluation.correct.double() - hits))[:, None].numpy())
    costs = ("bit_flops", "bit_flops_std", "bit_flops_total", "top1", "loss")
    return {
        "share": evaluation.share,
        **{name: own[name] for name in costs},
        "shuffled_top1": 100 * hits.mean().item(),
        "instance_gain": gain,
    }


def thresholds(confidence: Tensor, shares: Iterable[float] = SHARES) -> list[float]:
    """The confidence that each of ``shares`` of the images does not exceed, ascending.

    Args:
        confidence: float64 ``[N]``, of the images to calibrate on.
        shares: in [0, 1]; 0 gives the threshold that no image is below, 1 that of all.
    """
    return sorted({threshold_of(confidence, share) for share in shares})
