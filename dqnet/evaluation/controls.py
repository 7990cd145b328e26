"""Controls: is it the match between image and routing that helps, or the allocation of bits alone?

Each control keeps part of what the controller does. Shuffled keeps all but the match: every image
runs with another one's routing, so costs, frequencies and what layers have in common stay. Random
keeps each layer's frequencies, fixed its most frequent width, and single no more than one width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqnet.errors import UserError
from dqnet.evaluation.bootstrap import bootstrap_mean
from dqnet.evaluation.evaluate_routings import Routed
from dqnet.measurement import Evaluation
from dqnet.plan import LayerPlan

#: of the shuffled and the random routings
SEEDS = tuple(range(5))
CONFIDENCE, RESAMPLES = 0.95, 10_000


@dataclass(frozen=True)
class Key:
    """A kind of routing, and what tells it from the others of its kind.

    Attributes:
        kind: ``shuffled``, ``random``, ``fixed`` or ``single``; ``curve`` or ``shuffled curve``.
        seed: of what is drawn.
        width: the one of all layers.
        budget_lambda: the λ of a point of the curve.
    """

    kind: str
    seed: int | None = None
    width: int | str | None = None
    budget_lambda: float | None = None


def derangement(count: int, seed: int) -> Tensor:
    """A random permutation of ``count`` images that leaves none in its place: int64 ``[N]``.

    Raises:
        UserError: if there is only one image.
    """
    if count < 2:
        raise UserError("controls need at least two images: one has no other's routing to run with")
    generator = torch.Generator().manual_seed(seed)
    # Rejection keeps all of them equally likely; one permutation in e has no fixed point.
    while True:
        order = torch.randperm(count, generator=generator)
        if not (order == torch.arange(count)).any():
            return order


def control_routings(own: Evaluation, seeds: Iterable[int] = SEEDS) -> dict[Key, Tensor]:
    """The routings to compare with: uint8 ``[N, L]`` each, the index of every layer's width."""
    chosen, count = own.chosen.byte(), len(own.chosen)
    routings: dict[Key, Tensor] = {}
    for seed in seeds:
        routings[Key("shuffled", seed)] = chosen[derangement(count, seed)]
        generator = torch.Generator().manual_seed(seed)
        frequencies = own.histogram.double()
        drawn = torch.multinomial(frequencies, count, replacement=True, generator=generator)
        routings[Key("random", seed)] = drawn.T.byte()
    routings[Key("fixed")] = own.histogram.argmax(1).byte().expand(count, -1)
    for index, width in enumerate(own.widths):
        # A layer that lacks it runs at the nearest one that it has.
        columns = [_nearest(layer, own.widths, index) for layer in own.routed]
        single = torch.tensor(columns, dtype=torch.uint8)
        routings[Key("single", width=width)] = single.expand(count, -1)
    return routings


def _nearest(layer: LayerPlan, widths: Sequence[int | str], index: int) -> int:
    """The column of a layer's own candidate that is nearest to column ``index``."""
    return min(map(widths.index, layer.widths), key=lambda own: abs(own - index))


def compare(own: Evaluation, answers: Mapping[Key, Routed]) -> dict[str, Any]:
    """``controls`` of ``eval.json``.

    Args:
        own: the network with its own routing.
        answers: what it answered with those of :func:`control_routings`.

    Returns:
        Figures of every control; ``instance_gain``, top-1 of own less the mean top-1 of shuffled,
        in per cent; and ``loss_gain``, the mean loss of shuffled less that of own, so that above 0
        own is better there too. Both with their bootstrap interval over images.
    """
    keys = {kind: [key for key in answers if key.kind == kind] for kind in ("shuffled", "random")}
    shuffled = [answers[key] for key in keys["shuffled"]]
    correct = torch.stack([routed.correct.double() for routed in shuffled]).mean(0)
    losses = torch.stack([routed.losses for routed in shuffled]).mean(0)
    gains = torch.stack([100 * (own.correct.double() - correct), losses - own.losses], 1).numpy()
    low, high = bootstrap_mean(gains, CONFIDENCE, RESAMPLES)
    instance_gain, loss_gain = (
        {
            "points": gains[:, column].mean().item(),
            "low": low[column].item(),
            "high": high[column].item(),
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
        }
        for column in range(2)
    )
    return {
        "own": {key: own.metrics[key] for key in ("top1", "loss", "bit_flops")},
        **{
            kind: [{"seed": key.seed} | answers[key].metrics for key in keys[kind]] for kind in keys
        },
        "fixed": answers[Key("fixed")].metrics,
        "single": {str(width): answers[Key("single", width=width)].metrics for width in own.widths},
        "instance_gain": instance_gain,
        "loss_gain": loss_gain,
        "shuffled_bit_flops_at_own_top1": None,
    }


def cost_at_top1(points: Sequence[Mapping[str, float]], top1: float) -> float | None:
    """The Bit-FLOPs at which shuffled routing reaches ``top1``, in per cent.

    Args:
        points: rows of ``curve.csv``, by rising cost; between them the curve is straight.
        top1: the accuracy to reach.

    Returns:
        The lowest such cost on the curve; ``None`` if it is not reached anywhere.
    """
    cost = np.array([point["bit_flops"] for point in points])
    reached = np.array([point["shuffled_top1"] for point in points])
    above = np.flatnonzero(reached >= top1)
    if not len(above):
        return None
    last = above[0]
    if last == 0:
        return cost[0].item()
    ends = slice(last - 1, last + 1)
    return np.interp(top1, reached[ends], cost[ends]).item()
