"""A confidence cascade: images whose cheap answer is unsure run again at a higher cost.

The bits of an image then follow from what the network made of it, not from its early features
(Wang et al. 2017, *IDK cascades*, https://arxiv.org/abs/1706.00885). Confidence is the probability
of the predicted class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dqnet.costs.network import full_precision_cost
from dqnet.costs.static import static_cost
from dqnet.evaluation.bootstrap import mean_intervals
from dqnet.evaluation.controls import SEEDS, derangement
from dqnet.measurement import Evaluation, percent
from dqnet.plan import LayerPlan

#: of the calibration images that run twice, one point each; others are less or more confident
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def before_routing(layers: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """What two passes of one dynamic network have in common: the layers before a routed one.

    Args:
        layers: in the order of execution; none of these layers reads a routed one's output.
    """
    return layers[: [layer.role for layer in layers].index("routed")]


def cascade_point(
    first: Evaluation,
    second: Evaluation,
    threshold: float,
    reused: tuple[LayerPlan, ...] = (),
) -> dict[str, Any]:
    """What images whose confidence is at most ``threshold`` running twice leads to.

    Args:
        first: of the cheap pass, which all images make.
        second: of the more expensive one, also of all images, of which some are picked.
        threshold: in [0, 1].
        reused: layers whose outputs the second pass takes over from the first one.

    Returns:
        ``share`` of the images that run twice; ``bit_flops`` of the mean image, their standard
        deviation over images, and ``bit_flops_total`` with full-precision layers, which run
        twice as well; ``top1``, ``loss``. ``shuffled_top1`` is the mean over permutations of
        which images run twice: the same cost without the match. ``instance_gain`` is top-1
        less that, with its bootstrap interval over images.
    """
    again = first.confidence <= threshold
    correct = torch.where(again, second.correct, first.correct)
    losses = torch.where(again, second.losses, first.losses)
    cost = first.cost + again * (second.cost - static_cost(reused))
    share = again.double().mean().item()
    full = full_precision_cost(first.layers) + share * (
        full_precision_cost(second.layers) - full_precision_cost(reused)
    )
    orders = [derangement(len(again), seed) for seed in SEEDS]
    hits = [torch.where(again[order], second.correct, first.correct) for order in orders]
    shuffled = torch.stack(hits).double().mean(0)  # how often each image is right
    (gain,) = mean_intervals((100 * (correct.double() - shuffled))[:, None].numpy())
    return {
        "threshold": threshold,
        "share": share,
        "bit_flops": cost.mean().item(),
        "bit_flops_std": cost.std(correction=0).item(),
        "bit_flops_total": cost.mean().item() + full,
        "top1": percent(correct),
        "loss": losses.mean().item(),
        "shuffled_top1": 100 * shuffled.mean().item(),
        "instance_gain": gain,
    }


def thresholds(confidence: Tensor, shares: Iterable[float] = SHARES) -> list[float]:
    """The confidence that each of ``shares`` of the images does not exceed, ascending.

    Args:
        confidence: float64 ``[N]``, of the images to calibrate on.
        shares: in [0, 1]; 0 gives the threshold that no image is below, 1 that of all.
    """
    # No image is below 0, all are up to 1.
    ordered = [0.0, *confidence.sort().values[:-1].tolist(), 1.0]
    return sorted({ordered[round(share * len(confidence))] for share in shares})
