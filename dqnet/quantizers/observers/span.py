"""Ranges from the smallest to the largest value.

Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.1: of weights the minimum and the
maximum; of activations their moving averages over batches (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.1).
"""

from __future__ import annotations

from torch import Tensor

from dqnet.quantizers.observers.base import Observer, Quantize


def span(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of ``[R, M]`` and zero, each ``[R]``."""
    low, high = rows.aminmax(dim=1)
    return low.clamp_max(0), high.clamp_min(0)


class MinMax(Observer):
    """The smallest and the largest value of all that was seen."""

    follows = True

    def __init__(self) -> None:
        self._span: tuple[Tensor, Tensor] | None = None

    def see(self, rows: Tensor) -> None:
        low, high = span(rows)
        if self._span is not None:
            low, high = low.minimum(self._span[0]), high.maximum(self._span[1])
        self._span = low, high

    def range(self, quantize: Quantize, levels: int) -> tuple[Tensor, Tensor]:
        return self._span


class MovingAverage(Observer):
    """Moving averages of every part's smallest and largest value.

    The first parts are averaged evenly, until the average is as long as its momentum says.

    Args:
        momentum: the weight of what was before, in [0, 1).
    """

    follows = True

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._span: tuple[Tensor, Tensor] | None = None
        self._parts = 0

    def see(self, rows: Tensor) -> None:
        self._parts += 1
        new = span(rows)
        if self._span is None:
            self._span = new
            return
        share = max(1 / self._parts, 1 - self._momentum)
        self._span = tuple(old.lerp(own, share) for old, own in zip(self._span, new, strict=True))

    def range(self, quantize: Quantize, levels: int) -> tuple[Tensor, Tensor]:
        return self._span
