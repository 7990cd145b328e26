"""A confidence cascade: images whose cheap answer is unsure run again at a higher cost.

The bits of an image then follow from what the network made of it, not from its early features
(Wang et al. 2017, *IDK cascades*, https://arxiv.org/abs/1706.00885). Confidence is the probability
of the predicted class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqnet.costs.network import full_precision_cost, static_cost
from dqnet.evaluation.bootstrap import bootstrap_mean
from dqnet.evaluation.controls import CONFIDENCE, RESAMPLES, SEEDS, derangement
from dqnet.measurement import Evaluation, percent
from dqnet.plan import LayerPlan

#: of the calibration images that run twice, one point each; others are less or more confident
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Reused:
    """Bit-FLOPs of the second pass that the first one has done already.

    Attributes:
        quantized: in static layers.
        full_precision: in layers kept in full precision, at 32 × 32 bits.
    """

    quantized: int = 0
    full_precision: int = 0

    @classmethod
    def within(cls, layers: tuple[LayerPlan, ...]) -> Reused:
        """Of two passes of one dynamic network: what runs before its first routed layer.

        Args:
            layers: in the order of execution; none of these layers reads a routed one's output.
        """
        roles = [layer.role for layer in layers]
        before = layers[: roles.index("routed")]
        return cls(static_cost(before), full_precision_cost(before))


@dataclass(frozen=True)
class Cascade:
    """Two evaluations of the same images.

    Attributes:
        first: of the cheap pass, which all images make.
        second: of the more expensive one, also of all images: :meth:`point` picks those it is for.
        reused: what the second pass need not repeat.
    """

    first: Evaluation
    second: Evaluation
    reused: Reused = Reused()

    def point(self, threshold: float) -> dict[str, Any]:
        """What images whose confidence is at most ``threshold`` running twice leads to.

        Returns:
            ``share`` of the images that run twice; ``bit_flops`` of the mean image, their standard
            deviation over images, and ``bit_flops_total`` with full-precision layers, which run
            twice as well; ``top1``, ``loss``. ``shuffled_top1`` is the mean over permutations of
            which images run twice: the same cost without the match. ``instance_gain`` is top-1
            less that, with its bootstrap interval over images.
        """
        again = self.first.confidence <= threshold
        correct = torch.where(again, self.second.correct, self.first.correct)
        losses = torch.where(again, self.second.losses, self.first.losses)
        cost = self.first.cost + again * (self.second.cost - self.reused.quantized)
        share = again.double().mean().item()
        full = full_precision_cost(self.first.layers) + share * (
            full_precision_cost(self.second.layers) - self.reused.full_precision
        )
        shuffled = self._shuffled(again)
        gains = (100 * (correct.double() - shuffled))[:, None].numpy()
        (low,), (high,) = bootstrap_mean(gains, CONFIDENCE, RESAMPLES)
        return {
            "threshold": threshold,
            "share": share,
            "bit_flops": cost.mean().item(),
            "bit_flops_std": cost.std(correction=0).item(),
            "bit_flops_total": cost.mean().item() + full,
            "top1": percent(correct),
            "loss": losses.mean().item(),
            "shuffled_top1": 100 * shuffled.mean().item(),
            "instance_gain": {
                "points": gains.mean().item(),
                "low": low.item(),
                "high": high.item(),
            },
        }

    def _shuffled(self, again: Tensor) -> Tensor:
        """How often an image is right when others' confidence decides: float64 ``[N]``."""
        hits = [
            torch.where(
                again[derangement(len(again), seed)], self.second.correct, self.first.correct
            )
            for seed in SEEDS
        ]
        return torch.stack(hits).double().mean(0)


def thresholds(confidence: Tensor, shares: Iterable[float] = SHARES) -> list[float]:
    """The confidence that each of ``shares`` of the images does not exceed, ascending.

    Args:
        confidence: float64 ``[N]``, of the images to calibrate on.
        shares: in [0, 1]; 0 gives the threshold that no image is below, 1 that of all.
    """
    ordered = confidence.sort().values
    counts = [round(share * len(ordered)) for share in shares]
    inside = {ordered[count - 1].item() for count in counts if 0 < count < len(ordered)}
    ends = ({0.0} if 0 in counts else set()) | ({1.0} if len(ordered) in counts else set())
    return sorted(inside | ends)
