"""Controls: is it the match between image and routing that helps, or the allocation of bits alone?

Each control keeps part of what the controller does. Shuffled keeps all but the match: every image
runs with another one's routing, so costs, frequencies and what layers have in common stay. Random
keeps each layer's frequencies, fixed its most frequent width, and single no more than one width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqnet.errors import UserError
from dqnet.evaluation.bootstrap import CONFIDENCE, RESAMPLES, mean_intervals
from dqnet.evaluation.routings import Routed
from dqnet.measurement import Evaluation

#: of the shuffled and the random routings
SEEDS = tuple(range(5))


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


def control_routings(own: Evaluation, seeds: Iterable[int] = SEEDS) -> dict[str, Tensor]:
    """The routings to compare with, by kind: the index of every layer's width, uint8 ``[R, N, L]``.

    R is the number of seeds of ``shuffled`` and ``random``, 1 for ``fixed``, and the number of
    widths for ``single``, where a layer that lacks one runs at the nearest one that it has.
    """
    chosen, count = own.chosen.byte(), len(own.chosen)
    shuffled, drawn = [], []
    for seed in seeds:
        shuffled.append(chosen[derangement(count, seed)])
        generator = torch.Generator().manual_seed(seed)
        frequencies = own.histogram.double()
        columns = torch.multinomial(frequencies, count, replacement=True, generator=generator)
        drawn.append(columns.T.byte())
    single = [
        [
            min(map(own.widths.index, layer.widths), key=lambda candidate: abs(candidate - index))
            for layer in own.routed
        ]
        for index in range(len(own.widths))
    ]
    return {
        "shuffled": torch.stack(shuffled),
        "random": torch.stack(drawn),
        "fixed": own.histogram.argmax(1).byte().expand(1, count, -1),
        "single": torch.tensor(single, dtype=torch.uint8)[:, None].expand(-1, count, -1),
    }


def compare(own: Evaluation, answers: Mapping[str, Routed]) -> dict[str, Any]:
    """``controls`` of ``eval.json``.

    Args:
        own: the network with its own routing.
        answers: what it answered with those of :func:`control_routings`.

    Returns:
        Metrics of every control; ``instance_gain``, top-1 of own less the mean top-1 of shuffled,
        in per cent; and ``loss_gain``, the mean loss of shuffled less that of own, so that above 0
        own is better there too. Both with their bootstrap interval over images.
    """
    shuffled = answers["shuffled"]
    instance_gain, loss_gain = gains(
        own.correct.double() - shuffled.correct.double().mean(0),
        shuffled.losses.mean(0) - own.losses,
    )
    drawn = {
        kind: [{"seed": s} | row for s, row in zip(SEEDS, answers[kind].metrics, strict=True)]
        for kind in ("shuffled", "random")
    }
    return {
        "own": {key: own.metrics[key] for key in ("top1", "loss", "bit_flops")},
        **drawn,
        "fixed": answers["fixed"].metrics[0],
        "single": dict(zip(map(str, own.widths), answers["single"].metrics, strict=True)),
        "instance_gain": instance_gain,
        "loss_gain": loss_gain,
        "shuffled_bit_flops_at_own_top1": None,
    }


def gains(hits: Tensor, losses: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """``instance_gain``, in per cent, and ``loss_gain``, with bootstrap intervals over images.

    Args:
        hits: float64 ``[N]``: how much more often each image is right than with shuffled routing.
        losses: float64 ``[N]``: by how much its cross-entropy is less.
    """
    found = mean_intervals(torch.stack([100 * hits, losses], 1).numpy())
    instance, loss = (gain | {"confidence": CONFIDENCE, "resamples": RESAMPLES} for gain in found)
    return instance, loss


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
    ends = slice(max(above[0] - 1, 0), above[0] + 1)
    return np.interp(top1, reached[ends], cost[ends]).item()
