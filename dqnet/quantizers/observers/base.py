"""What every observer offers, and the values that most of them decide by."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from dqnet.quantizers.observers.histogram import Histogram

#: (values ``[R, M]``, low ``[R]``, high ``[R]``) → the values, quantized in that range
Quantize: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
#: the low and the high end of each row's range
Span: TypeAlias = tuple[Tensor, Tensor]
#: values that are kept as they are; of more, or of several parts, only the histogram is
KEPT = 2**22


class Observer:
    """Sees a tensor in any number of parts, and says in which range to quantize it.

    A row is what has a range of its own: a weight's output channel, or a whole tensor. A range
    always contains zero, which has to be represented exactly.
    """

    #: whether a training step can afford it, so that ranges follow what is trained
    follows: ClassVar[bool] = False

    def see(self, rows: Tensor) -> None:
        """Sees a part: finite values ``[R, M]`` in float32 or wider, M above 0."""
        raise NotImplementedError

    def merged(self, old: Span, new: Span) -> Span:
        """In training: a range after a batch whose values span another one; if it ``follows``."""
        raise NotImplementedError

    def range(self, quantize: Quantize, levels: int) -> Span:
        """The range of each row, low ≤ 0 ≤ high, each ``[R]``.

        Args:
            quantize: what the range is for.
            levels: how many different values that has.
        """
        raise NotImplementedError


class ValueObserver(Observer):
    """Decides by all values: exactly by those of a single part, else by a histogram."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._histogram: Histogram | None = None

    def see(self, rows: Tensor) -> None:
        if self._first is None and self._histogram is None and rows.numel() <= KEPT:
            self._first = rows.clone()
            return
        if self._histogram is None:
            self._histogram = Histogram(len(rows), rows.device)
            if self._first is not None:
                self._histogram.add(self._first)
                self._first = None
        self._histogram.add(rows)

    def values(self) -> tuple[Tensor, Tensor]:
        """Values and how often each was seen, both ``[R, M]``."""
        if self._first is not None:
            return self._first, torch.ones_like(self._first)
        return self._histogram.values()
