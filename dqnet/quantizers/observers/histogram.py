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

    Zeros, of which a ReLU leaves half of all values, are counted apart: in a bin they would be
    taken for small values.

    Args:
        rows: R, how many histograms.
        device: where they are kept.

    Attributes:
        counts: float64 ``[R, BINS]``, without zeros.
        zeros: float64 ``[R]``.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.counts = torch.zeros(rows, BINS, dtype=torch.float64, device=device)
        self.zeros = torch.zeros(rows, dtype=torch.float64, device=device)
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
        other = (rows != 0).to(self.counts.dtype)
        self.counts.scatter_add_(1, index, other)
        self.zeros += rows.shape[1] - other.sum(1)

    def _widen(self, needed: Tensor) -> None:
        narrow = self._reach < needed
        while narrow.any():
            pairs = self.counts[narrow].unflatten(1, (BINS // 2, 2)).sum(2)
            self.counts[narrow] = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
            self._reach = torch.where(narrow, self._reach * 2, self._reach)
            narrow = self._reach < needed

    def values(self) -> tuple[Tensor, Tensor]:
        """The middle of every bin, and zero, ``[R, BINS + 1]``; and how often each was seen."""
        steps = torch.arange(BINS, device=self.counts.device, dtype=torch.float64)
        centers = ((steps + 0.5) / (BINS / 2) - 1) * self._reach[:, None]
        values = torch.cat((centers, torch.zeros_like(centers[:, :1])), 1)
        return values, torch.cat((self.counts, self.zeros[:, None]), 1)

    def magnitudes(self, bins: int) -> tuple[Tensor, Tensor]:
        """A histogram of magnitudes above 0, up to where the last bin that has any ends.

        Args:
            bins: how many, spread evenly. Values are taken to be spread evenly in those of this
                histogram, whose edges are others.

        Returns:
            Counts ``[R, bins]``, and where they end, ``[R]``; 0 for rows of nothing but zeros.
        """
        half = BINS // 2
        own = self.counts[:, half:] + self.counts[:, :half].flip(1)
        places = torch.arange(1, half + 1, device=own.device)
        last = torch.where(own > 0, places, 0).amax(1)
        below = torch.nn.functional.pad(own.cumsum(1), (1, 1))  # each edge
        steps = torch.arange(bins + 1, device=own.device, dtype=own.dtype)
        edges = last[:, None] * steps / bins
        whole = edges.long()
        start, end = below.gather(1, whole), below.gather(1, (whole + 1).clamp_max(half))
        return (start + (end - start) * (edges - whole)).diff(dim=1), last / half * self._reach
