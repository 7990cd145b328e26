"""Ranges from the smallest to the largest value.

Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.1: of weights the minimum and the
maximum; of activations their moving averages over batches (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.1).
"""

from __future__ import annotations

from torch import Tensor

from dqnet.quantizers.observers.base import Observer, Quantize, Span


def span(rows: Tensor) -> Span:
    """The smallest and the largest of ``[R, M]`` and zero, each ``[R]``."""
    # Not aminmax, which is six times slower along an axis.
    return rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)


class _Spans(Observer):
    """Spans of parts, merged one after the other."""

    follows = True

    def __init__(self) -> None:
        self._span: Span | None = None

    def see(self, rows: Tensor) -> None:
        new = span(rows)
        self._span = new if self._span is None else self.merged(self._span, new)

    def range(self, quantize: Quantize, levels: int) -> Span:
        return self._span


class MinMax(_Spans):
    """The smallest and the largest value of all that was seen."""

    def merged(self, old: Span, new: Span) -> Span:
        return old[0].minimum(new[0]), old[1].maximum(new[1])


class MovingAverage(_Spans):
    """Moving averages of every part's smallest and largest value.

    The first parts are averaged evenly, until the average is as long as its momentum says.

    Args:
        momentum: the weight of what was before, in [0, 1).
    """

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self._momentum = momentum
        self._parts = 0

    def see(self, rows: Tensor) -> None:
        self._parts += 1
        super().see(rows)

    def merged(self, old: Span, new: Span) -> Span:
        share = 1 - self._momentum
        if self._parts:  # in a calibration
            share = max(1 / self._parts, share)
        return old[0].lerp(new[0], share), old[1].lerp(new[1], share)
