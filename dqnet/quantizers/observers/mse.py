"""The range with the least mean squared error of quantization.

Sung et al. 2015, https://arxiv.org/abs/1511.06488, section 3.1, search the step by the L2 error;
Banner et al. 2019, https://arxiv.org/abs/1810.05723, section 4, say why clipping lowers it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqnet.quantizers.observers.base import Quantize, ValueObserver
from dqnet.quantizers.observers.span import span

#: ranges that are tried: the whole one times i / CANDIDATES
CANDIDATES = 100


class MeanSquaredError(ValueObserver):
    """The best of the whole range's 100 even shares, for each row its own."""

    def range(self, quantize: Quantize, levels: int) -> tuple[Tensor, Tensor]:
        values, counts = self.values()
        seen = torch.where(counts > 0, values, 0)
        low, high = span(seen)
        least = torch.full_like(low, torch.inf, dtype=torch.float64)
        best = torch.ones_like(low)
        for i in range(1, CANDIDATES + 1):
            share = i / CANDIDATES
            error = quantize(values, low * share, high * share).sub_(values).square_()
            error = error.mul_(counts).sum(1, dtype=torch.float64)
            better = error <= least  # of equal ones the largest, which clips least
            least = torch.where(better, error, least)
            best = torch.where(better, torch.full_like(best, share), best)
        return low * best, high * best
