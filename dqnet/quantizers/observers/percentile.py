"""Ranges that leave out a share of the values at either end.

McKinstry et al. 2018, https://arxiv.org/abs/1809.04191, section 3: 99.9 and 99.99 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqnet.quantizers.observers.base import Quantize, ValueObserver


class Percentile(ValueObserver):
    """From the percentile 100 − p to the percentile p, and to zero if that is not between them.

    Args:
        percentile: p, above 50 and at most 100, where the range is that of all values.
    """

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self._share = percentile / 100

    def range(self, quantize: Quantize, levels: int) -> tuple[Tensor, Tensor]:
        values, counts = self.values()
        values, order = values.sort(dim=1)
        below = counts.gather(1, order).double().cumsum(1)  # how many are at most this large
        total = below[:, -1:]
        last = values.shape[1] - 1
        ends = []
        for share in (1 - self._share, self._share):
            # Half a count of tolerance: counts are whole, sums of shares are rounded.
            rank = (share * total - 1e-9 * total).clamp_min(1e-9)
            index = torch.searchsorted(below, rank).clamp_max(last)
            ends.append(values.gather(1, index)[:, 0])
        return ends[0].clamp_max(0), ends[1].clamp_min(0)
