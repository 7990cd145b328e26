"""The range with the least Kullback-Leibler divergence between values and quantized values.

Migacz 2017, *8-bit Inference with TensorRT* (GPU Technology Conference), slides 21 to 38.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import xlogy

from dqnet.quantizers.observers.base import Quantize, ValueObserver

BINS = 2048
#: how many thresholds are tried, about
CANDIDATES = 128


class KL(ValueObserver):
    """A threshold on magnitudes, for each row its own, as TensorRT's calibration chooses it.

    Magnitudes above zero are counted in 2,048 bins. For a threshold at the end of bin i, P is the
    histogram up to there with all that lies above added to its last bin; Q is P's histogram
    (without what was added) in as many bins as there are levels, spread evenly over those bins of P
    that are not empty. The threshold with the least KL(P || Q) is chosen.
    """

    def range(self, quantize: Quantize, levels: int) -> tuple[Tensor, Tensor]:
        values, counts = self.values()
        negative = (torch.where(counts > 0, values, 0) < 0).any(1)
        positive = (torch.where(counts > 0, values, 0) > 0).any(1)
        if self._histogram is None:
            magnitudes, largest = _counted(values.abs())
        else:
            magnitudes, largest = self._histogram.magnitudes(BINS)
        # Of a range on both sides of zero half of the levels are on each.
        steps = max(levels // 2 if bool((negative & positive).any()) else levels, 1)
        threshold = _threshold(magnitudes, steps) * largest
        zero = torch.zeros_like(threshold)
        low = torch.where(negative, -threshold, zero).to(values.dtype)
        return low, torch.where(positive, threshold, zero).to(values.dtype)


def _counted(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``[R, BINS]`` from 0 to each row's largest, and that, ``[R]``; zeros are left out."""
    seen = magnitudes.double()
    largest = seen.amax(1)
    reach = torch.where(largest > 0, largest, 1)[:, None]
    index = (seen / reach * BINS).long().clamp_max_(BINS - 1)
    histogram = torch.zeros(len(seen), BINS, dtype=torch.float64, device=seen.device)
    return histogram.scatter_add_(1, index, (seen > 0).double()), largest


def _threshold(histogram: Tensor, levels: int) -> Tensor:
    """The best threshold of each row, ``[R]``, as a share of the largest magnitude."""
    if levels >= BINS:
        return torch.ones(len(histogram), dtype=histogram.dtype, device=histogram.device)
    stride = max(1, (BINS - levels) // CANDIDATES)
    least = torch.full((len(histogram),), torch.inf, dtype=histogram.dtype).to(histogram.device)
    best = torch.full_like(least, BINS)
    for end in range(BINS, levels - 1, -stride):
        inside = histogram[:, :end]
        p = inside.clone()
        p[:, -1] += histogram[:, end:].sum(1)
        divergence = _divergence(p, _coarse(inside, levels))
        better = divergence < least
        least = torch.where(better, divergence, least)
        best = torch.where(better, torch.full_like(best, end), best)
    return best / BINS


def _coarse(fine: Tensor, levels: int) -> Tensor:
    """``[R, B]`` summed in ``levels`` bins, each spread evenly over its bins that are not empty."""
    owner = torch.arange(fine.shape[1], device=fine.device) * levels // fine.shape[1]
    owner = owner.expand_as(fine)
    totals = fine.new_zeros(len(fine), levels).scatter_add_(1, owner, fine)
    filled = fine.new_zeros(len(fine), levels).scatter_add_(1, owner, (fine > 0).to(fine.dtype))
    return (totals / filled.clamp_min(1)).gather(1, owner) * (fine > 0)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q) of counts ``[R, B]``, ``[R]``; a little is left where Q is empty and P is not."""
    p = p / p.sum(1, keepdim=True).clamp_min(1e-30)
    q = (q / q.sum(1, keepdim=True).clamp_min(1e-30)).clamp_min(1e-10)
    return (xlogy(p, p) - xlogy(p, q)).sum(1)
