"""Controls: is it the match between image and routing that helps, or the allocation of bits alone?

Each control keeps part of what the controller does. Shuffled keeps all but the match: every image
runs with another one's routing, so costs, frequencies and what layers have in common stay. Random
keeps each layer's frequencies, fixed its most frequent width, and single no more than one width.
Best fixed asks how far allocation alone goes: of all routings that are the same for every image and
cost no more than the controller's, it is the best that a search finds on held-out images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqnet.costs import find_cost
from dqnet.costs.static import BIT_FLOPS
from dqnet.errors import UserError
from dqnet.evaluation.bootstrap import CONFIDENCE, RESAMPLES, mean_intervals
from dqnet.evaluation.routings import Routed
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.search.base import Batch, Journal, Problem
from dqnet.search.fixed import best_fixed
from dqnet.trace import evaluating

#: of the shuffled and the random routings
SEEDS = tuple(range(5))
#: of the network's own routings: the most frequent ones begin the search for a fixed one
STARTS = 8


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


def fixed_routing(
    model: QuantizedModel, own: Evaluation, batches: Sequence[Batch], journal: Journal
) -> list[int]:
    """The best routing for all images that costs no more than the mean image of ``own``.

    Args:
        model: the network; its training mode is restored.
        own: the network with its own routing, whose most frequent routings the search begins with.
        batches: held-out images and labels to choose by, on the model's device.
        journal: shows how far the search is.

    Returns:
        The index of every layer's width.
    """
    rows, counts = own.chosen.unique(dim=0, return_counts=True)
    starts = rows[counts.argsort(descending=True)[:STARTS]].tolist()
    starts += [own.histogram.argmax(1).tolist(), *_single(own)]
    target = own.metrics["bit_flops"]
    problem = Problem(model, batches, find_cost(BIT_FLOPS), target, journal)
    with evaluating(model), torch.no_grad():
        return best_fixed(problem, starts)


def control_routings(
    own: Evaluation, best: Sequence[int], seeds: Iterable[int] = SEEDS
) -> dict[str, Tensor]:
    """The routings to compare with, by kind: the index of every layer's width, uint8 ``[R, N, L]``.

    R is the number of seeds of ``shuffled`` and ``random``, 1 for ``fixed`` and ``best_fixed``, and
    the number of widths for ``single``, where a layer that lacks one runs at the nearest that it
    has.

    Args:
        own: the network with its own routing.
        best: :func:`fixed_routing`.
        seeds: of the random ones.
    """
    chosen, count = own.chosen.byte(), len(own.chosen)
    shuffled, drawn = [], []
    for seed in seeds:
        shuffled.append(chosen[derangement(count, seed)])
        generator = torch.Generator().manual_seed(seed)
        frequencies = own.histogram.double()
        columns = torch.multinomial(frequencies, count, replacement=True, generator=generator)
        drawn.append(columns.T.byte())
    single = torch.tensor(_single(own), dtype=torch.uint8)
    return {
        "shuffled": torch.stack(shuffled),
        "random": torch.stack(drawn),
        "fixed": own.histogram.argmax(1).byte().expand(1, count, -1),
        "best_fixed": torch.tensor(best, dtype=torch.uint8).expand(1, count, -1),
        "single": single[:, None].expand(-1, count, -1),
    }


def _single(own: Evaluation) -> list[list[int]]:
    return [
        [
            min(map(own.widths.index, layer.widths), key=lambda candidate: abs(candidate - index))
            for layer in own.routed
        ]
        for index in range(len(own.widths))
    ]


def compare(own: Evaluation, answers: Mapping[str, Routed]) -> dict[str, Any]:
    """``controls`` of ``eval.json``.

    Args:
        own: the network with its own routing.
        answers: what it answered with those of :func:`control_routings`.

    Returns:
        Metrics of every control; ``instance_gain``, top-1 of own less the mean top-1 of shuffled,
        in per cent; ``loss_gain``, the mean loss of shuffled less that of own, so that above 0 own
        is better there too; ``benefit`` and ``loss_benefit``, the same against the best fixed
        routing. All with their bootstrap interval over images.
    """
    shuffled, best = answers["shuffled"], answers["best_fixed"]
    instance_gain, loss_gain = gains(
        own.correct.double() - shuffled.correct.double().mean(0),
        shuffled.losses.mean(0) - own.losses,
    )
    benefit, loss_benefit = gains(
        own.correct.double() - best.correct[0].double(), best.losses[0] - own.losses
    )
    drawn = {
        kind: [{"seed": s} | row for s, row in zip(SEEDS, answers[kind].metrics, strict=True)]
        for kind in ("shuffled", "random")
    }
    return {
        "own": {key: own.metrics[key] for key in ("top1", "loss", "bit_flops")},
        **drawn,
        "fixed": answers["fixed"].metrics[0],
        "best_fixed": best.metrics[0]
        | {"widths": [own.widths[k] for k in best.chosen[0, 0].tolist()]},
        "single": dict(zip(map(str, own.widths), answers["single"].metrics, strict=True)),
        "instance_gain": instance_gain,
        "loss_gain": loss_gain,
        "benefit": benefit,
        "loss_benefit": loss_benefit,
        "shuffled_bit_flops_at_own_top1": None,
    }


def gains(hits: Tensor, losses: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """A gain in top-1, in per cent, and one in loss, with bootstrap intervals over images.

    Args:
        hits: float64 ``[N]``: how much more often each image is right than with another routing.
        losses: float64 ``[N]``: by how much its cross-entropy is less.
    """
    found = mean_intervals(torch.stack([100 * hits, losses], 1).numpy())
    top1, loss = (gain | {"confidence": CONFIDENCE, "resamples": RESAMPLES} for gain in found)
    return top1, loss


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
