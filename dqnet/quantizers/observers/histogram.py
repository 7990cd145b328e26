"""A histogram of values that are still coming in."""

from __future__ import annotations

import torch
from torch import Tensor

#: even, so that zero is an edge; and divisible by four, so that a half of them is made of pairs
BINS = 8192


class Histogram:
    """Counts, row by row, in equal bins from −2ⁿ to 2ⁿ.

    The range doubles when a value lies outside: then each two bins become one, and no count is
    split.

    Args:
        rows: R, how many histograms.
        device: where they are kept.

    Attributes:
        counts: float64 ``[R, BINS]``.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.counts = torch.zeros(rows, BINS, dtype=torch.float64, device=device)
        self._reach: Tensor | None = None  # [R], 2ⁿ

    def add(self, rows: Tensor) -> None:
        """Counts finite values ``[R, M]``."""
        largest = rows.abs().amax(1).double()
        needed = torch.exp2(torch.ceil(torch.log2(largest.clamp_min(2.0**-100))))
        if self._reach is None:
            self._reach = needed
        self._widen(needed)
        position = (rows / self._reach[:, None] + 1) * (BINS / 2)
        index = position.long().clamp_(0, BINS - 1)  # the largest value belongs to the last bin
        ones = torch.ones_like(index, dtype=self.counts.dtype)
        self.counts.scatter_add_(1, index, ones)

    def _widen(self, needed: Tensor) -> None:
        narrow = self._reach < needed
        while narrow.any():
            pairs = self.counts[narrow].unflatten(1, (BINS // 2, 2)).sum(2)
            self.counts[narrow] = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
            self._reach = torch.where(narrow, self._reach * 2, self._reach)
            narrow = self._reach < needed

    @property
    def centers(self) -> Tensor:
        """The middle of every bin, ``[R, BINS]``."""
        steps = torch.arange(BINS, device=self.counts.device, dtype=torch.float64)
        return ((steps + 0.5) / (BINS / 2) - 1) * self._reach[:, None]
