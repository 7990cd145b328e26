"""Weights that are powers of two, so that a multiplication is a shift.

Zhou et al. 2017, *Incremental Network Quantization*, https://arxiv.org/abs/1702.03044: the largest
exponent is that of eq. 2, rounding to the nearest, in the linear domain, that of eq. 4. Two things
differ. The paper sets a bit aside for zero; here the b bits are a sign and b − 1 bits of exponent,
one code of which is zero, so that there are 2ᵇ⁻¹ − 1 magnitudes and not 2ᵇ⁻². And all weights are
quantized at once instead of in shares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqnet.quantizers.scaled_weight import ScaledWeight
from dqnet.quantizers.table import nearest_codes


class PowerOfTwo(ScaledWeight, name="power_of_two", of="weight"):
    """0 and ±2ⁿ, with n from the exponent of the largest downwards.

    Its options are those of :class:`~dqnet.quantizers.scaled_weight.ScaledWeight`.
    """

    #: at 9 bits the smallest magnitude is below the smallest of float32
    storage = range(2, 9)
    granularity, block = "per_tensor", 64

    def scale(self, largest: Tensor, k: int) -> Tensor:
        """2ⁿ with n = ⌊log₂(4/3 · largest)⌋, to which ¾ · 2ⁿ is the least that is rounded."""
        return nearest_power(torch.where(largest > torch.finfo(largest.dtype).tiny, largest, 1))

    def rounded(self, rows: Tensor, k: int) -> Tensor:
        least = self._least(k)
        magnitude = rows.abs()
        power = nearest_power(magnitude.clamp(least, 1))
        power = torch.where(magnitude >= least / 2, power.copysign(rows), 0)
        return torch.where(rows.isnan(), rows, power)

    def table(self, k: int) -> Tensor:
        return powers_of_two(self.formats[k].bits)

    def codes(self, values: Tensor, k: int) -> Tensor:
        return nearest_codes(values, self.table(k).to(values))

    def _least(self, k: int) -> float:
        return 2.0 ** (2 - 2 ** (self.formats[k].bits - 1))


def powers_of_two(bits: int) -> Tensor:
    """0 and ±2⁻ⁿ, n from 0 to 2ᵇ⁻¹ − 2, ascending, float64 ``[2ᵇ − 1]``."""
    powers = [2.0**-n for n in range(2 ** (bits - 1) - 1)]
    return torch.tensor([*(-p for p in powers), 0.0, *powers[::-1]], dtype=torch.float64)


def nearest_power(x: Tensor) -> Tensor:
    """The nearest power of two to positive normal numbers, the larger of two; float32 or float64.

    Numbers from one power of two to the next differ in their mantissa alone. Half a mantissa more
    carries into the exponent from the middle of the two on.
    """
    whole, mantissa = (torch.int32, 23) if x.dtype == torch.float32 else (torch.int64, 52)
    bits = x.contiguous().view(whole).add(1 << (mantissa - 1))
    return bits.bitwise_and_(-1 << mantissa).view(x.dtype)
