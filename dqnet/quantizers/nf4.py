"""NormalFloat: quantiles of the normal distribution, for weights.

Dettmers et al. 2023, *QLoRA*, https://arxiv.org/abs/2305.14314, section 3: the values, eq. 4 and
appendix E, and the largest magnitude of a block as its scale, eq. 1 with blocks of 64. Scales are
float32; they are not quantized themselves.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dqnet.quantizers.scaled_weight import ScaledWeight, absmax_scale
from dqnet.quantizers.table import nearest_codes

#: appendix E, as the authors' bitsandbytes has them in float32
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@lru_cache(maxsize=16)
def normal_float(bits: int) -> Tensor:
    """The 2ᵇ values from −1 to 1, ascending, float64 ``[2ᵇ]``; zero is one of them.

    2ᵇ⁻¹ − 1 are negative and 2ᵇ⁻¹ positive: the standard normal distribution's quantiles at
    probabilities spaced evenly on either side of ½, divided by the largest. The outermost
    probability is the mean of those at half a step from the end with 2ᵇ and with 2ᵇ − 1 steps.
    At 4 bits they are the published ones, which this construction meets up to the rounding of
    float32.

    Args:
        bits: b, 2 to 8.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        if bits == 4:
            return torch.tensor(NF4, dtype=torch.float64)
        return constructed(bits)


def constructed(bits: int) -> Tensor:
    """What :func:`normal_float` says, at 4 bits too."""
    count = 2**bits
    outermost = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    negative, positive = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64))[:-1]
        for half in (count // 2 - 1, count // 2)
    )
    zero = torch.zeros(1, dtype=torch.float64)
    values = torch.cat([-negative, zero, positive.flip(0)])
    return values / values[-1]


class NormalFloat(ScaledWeight, name="nf4", of="weight"):
    """Weights, at any number of bits: NF4 is the one of 4.

    Its options are those of :class:`~dqnet.quantizers.scaled_weight.ScaledWeight`.
    """

    storage = range(2, 9)
    granularity, block = "block", 64

    def scale(self, largest: Tensor, k: int) -> Tensor:
        return absmax_scale(largest, 1.0)

    def rounded(self, rows: Tensor, k: int) -> Tensor:
        table = self.table(k).to(rows)
        values = table[nearest_codes(rows, table)]
        return torch.where(rows.isnan(), rows, values)

    def table(self, k: int) -> Tensor:
        return normal_float(self.formats[k].bits)

    def codes(self, values: Tensor, k: int) -> Tensor:
        return nearest_codes(values, self.table(k).to(values))
