"""What a cascade of several passes answers, from what its passes answer to all images.

Where :mod:`dqnet.evaluation.cascade` has every figure of one cascade, this has the answers and the
costs alone, in a few tensors, so that thousands of cascades can be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dqnet.cascade import Cascade
from dqnet.evaluation.controls import SEEDS, derangement
from dqnet.measurement import percent


@dataclass(frozen=True)
class Paths:
    """The answers on each of the P = 2^passes⁻¹ ways through a cascade, and the way images take.

    Attributes:
        logits: float ``[P, N, C]``.
        costs: float64 ``[P, N]``: Bit-FLOPs.
        taken: int64 ``[N]``: bit k is set if pass k + 2 ran.
        labels: int64 ``[N]``.
    """

    logits: Tensor
    costs: Tensor
    taken: Tensor
    labels: Tensor

    @classmethod
    def of_pass(cls, logits: Tensor, costs: Tensor, labels: Tensor) -> Paths:
        """One pass alone: logits ``[N, C]``, costs ``[N]``."""
        return cls(logits[None], costs[None], torch.zeros_like(labels), labels)

    def then(self, cascade: Cascade, logits: Tensor, costs: Tensor) -> Paths:
        """The outermost of the cascades: unsure images get one more pass.

        Args:
            cascade: fitted; its networks are not run.
            logits, costs: ``[N, C]`` and ``[N]``, the pass's, of all images.
        """
        second = cascade.tempered(logits, 1)
        before = torch.stack([cascade.tempered(first, 0) for first in self.logits])
        after = torch.stack([cascade.combined(first, second) for first in before])
        unsure = self._of(before).exp().amax(1) <= cascade.threshold
        return Paths(
            torch.cat([before, after]),
            torch.cat([self.costs, self.costs + costs]),
            self.taken + len(self.logits) * unsure,
            self.labels,
        )

    def _of(self, values: Tensor, taken: Tensor | None = None) -> Tensor:
        return values[self.taken if taken is None else taken, torch.arange(len(self.labels))]

    @property
    def answer(self) -> Tensor:
        """``[N, C]``: the logits of every image on its own way."""
        return self._of(self.logits)

    @property
    def cost(self) -> float:
        """Bit-FLOPs of the mean image."""
        return self._of(self.costs).mean().item()

    @property
    def worst_cost(self) -> float:
        """Bit-FLOPs of the mean image if every pass runs."""
        return self.costs[-1].mean().item()

    @property
    def correct(self) -> Tensor:
        """bool ``[N]``."""
        return self.answer.argmax(1) == self.labels

    @property
    def top1(self) -> float:
        """In per cent."""
        return percent(self.correct)

    @property
    def more_passes(self) -> float:
        """How many passes the mean image makes after the first one."""
        return sum(
            ((self.taken >> bit) & 1).double().mean().item()
            for bit in range((len(self.logits) - 1).bit_length())
        )

    def shuffled_correct(self) -> Tensor:
        """float64 ``[N]``: how often an image is right where it takes another image's way.

        The mean over the seeds of the controls, whose costs are the same on average.
        """
        orders = [derangement(len(self.taken), seed) for seed in SEEDS]
        answers = (self._of(self.logits, self.taken[order]).argmax(1) for order in orders)
        return torch.stack([answer == self.labels for answer in answers]).double().mean(0)
