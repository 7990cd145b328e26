"""Small floating-point numbers: any split into exponent and mantissa.

The 8-bit formats are those of Micikevicius et al. 2022, *FP8 Formats for Deep Learning*,
https://arxiv.org/abs/2209.05433 (table 1; a scale per tensor: section 3), the smaller ones and
scales per block those of the *OCP Microscaling Formats* specification 1.0, section 5.3, but that
scales are float32. Which numbers there are: :class:`dqnet.formats.Minifloat`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dqnet.errors import UserError, unknown_name
from dqnet.formats import Format, Minifloat
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.granularity import check_of_input
from dqnet.quantizers.half import widened
from dqnet.quantizers.scaled_weight import ScaledWeight, absmax_scale
from dqnet.quantizers.straight_through import straight_through

SCALINGS = ("absmax", "none")


def round_to_minifloat(x: Tensor, own: Minifloat) -> Tensor:
    """The nearest number of a format; larger ones saturate.

    Of two equally near ones it is the one with an even mantissa; without a mantissa the larger one
    (IEEE 754-2019, section 4.3.1).

    Args:
        x: any shape, float32 or float64.
        own: the format.

    Returns:
        A tensor of the same shape and type; NaN stays NaN.
    """
    x = x.clamp(-own.largest, own.largest)
    mantissa, _ = torch.frexp(x)  # x = 2 · mantissa · 2ᵉ, 1 ≤ 2 · |mantissa| < 2
    # Divided, because powers of two that are computed otherwise need not be exact.
    power = torch.where(x == 0, x, x / mantissa.mul_(2))  # 2ᵉ
    step = power.clamp_min(2.0**own.least_exponent).mul_(2.0**-own.mantissa)
    return (x / step).round_().mul_(step)


@lru_cache(maxsize=16)
def minifloat_table(own: Minifloat) -> Tensor:
    """The numbers by code, float64 ``[2ᵇ]``: sign, exponent, mantissa; NaN for reserved codes.

    IEEE 754's infinities are among those, as nothing that saturates becomes infinite.
    """
    with torch.inference_mode(False):
        code = torch.arange(2 ** (own.bits - 1), device="cpu")
        exponent, mantissa = code >> own.mantissa, code & (2**own.mantissa - 1)
        fraction = mantissa.double() / 2**own.mantissa + (exponent > 0)
        power = [2.0 ** (e + own.least_exponent) for e in range(2**own.exponent)]
        power = torch.tensor(power, dtype=torch.float64, device="cpu")
        positive = fraction * power[(exponent - 1).clamp_min(0)]
        positive[len(code) - own.reserved :] = torch.nan
        return torch.cat([positive, -positive])


def minifloat_codes(values: Tensor, own: Minifloat) -> Tensor:
    """The codes of numbers of a format, int64."""
    half = 2 ** (own.bits - 1)
    positive = minifloat_table(own)[: half - own.reserved].to(values)
    return torch.searchsorted(positive, values.abs().contiguous()) + half * values.signbit()


class MinifloatWeight(ScaledWeight, name="minifloat", of="weight"):
    """Weights.

    Args:
        formats, options: as of :class:`~dqnet.quantizers.scaled_weight.ScaledWeight`.
        scaling: ``absmax``: the largest magnitude becomes the largest number; ``none``: no scale,
            larger values saturate.
    """

    writes = Minifloat
    granularity, block = "per_channel", 32

    def __init__(
        self, formats: Sequence[Format], *, scaling: str = "absmax", **options: Any
    ) -> None:
        super().__init__(formats, **options)
        if scaling not in SCALINGS:
            raise unknown_name("scaling", scaling, SCALINGS)
        self._scaled = scaling == "absmax"

    def scale(self, largest: Tensor, k: int) -> Tensor:
        if not self._scaled:
            return torch.ones_like(largest)
        return absmax_scale(largest, self.formats[k].largest)

    def rounded(self, rows: Tensor, k: int) -> Tensor:
        return round_to_minifloat(rows, self.formats[k])

    def table(self, k: int) -> Tensor:
        return minifloat_table(self.formats[k])

    def codes(self, values: Tensor, k: int) -> Tensor:
        return minifloat_codes(values, self.formats[k])


class MinifloatInput(Quantizer, name="minifloat", of="input"):
    """Inputs, with one scale, from the largest magnitude that was observed.

    Args:
        formats, signed, options: as of any quantizer; there is always a sign.
        granularity: ``per_tensor``.
        scaling: as of weights.
        momentum: in training that magnitude is a moving average over batches; in [0, 1).
    """

    writes = Minifloat

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = None,
        granularity: str = "per_tensor",
        scaling: str = "absmax",
        momentum: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(formats, signed=True, **options)
        check_of_input(granularity)
        if scaling not in SCALINGS:
            raise unknown_name("scaling", scaling, SCALINGS)
        if not 0 <= momentum < 1:
            raise UserError(f"momentum {momentum} must be at least 0 and below 1")
        self._scaled = scaling == "absmax"
        self._momentum = momentum
        self.register_buffer("top", torch.zeros(()))
        self._seen: Tensor | None = None

    def _scale(self, k: int) -> Tensor:
        top = widened(self.top)
        return absmax_scale(top, self.formats[k].largest) if self._scaled else torch.ones_like(top)

    def forward(self, x: Tensor, k: int) -> Tensor:
        own, wide = self.formats[k], widened(x)
        with torch.no_grad():
            scale = self._scale(k)
            scaled = wide / scale
            quantized = round_to_minifloat(scaled, own).mul_(scale)
            # Up to half a step beyond the largest it is the nearest, without being clipped.
            exponent = math.frexp(own.largest)[1]
            inside = scaled.abs() <= own.largest + 2.0 ** (exponent - own.mantissa - 2)
        return straight_through(wide, quantized, inside).to(x.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        own, scale = self.formats[k], self._scale(k)
        codes = minifloat_codes(round_to_minifloat(widened(x) / scale, own), own)
        table = minifloat_table(own).to(scale)
        return Codes(codes.to(torch.int32), scale, torch.zeros_like(scale), table)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        largest = _largest(x)
        self._seen = largest if self._seen is None else self._seen.maximum(largest)

    @torch.no_grad()
    def finish(self) -> None:
        if self._seen is not None:
            self.top.copy_(self._seen)
        self._seen = None

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        if x.numel():
            self.top.lerp_(_largest(x).to(self.top), 1 - self._momentum)


def _largest(x: Tensor) -> Tensor:
    """The largest finite magnitude."""
    magnitudes = widened(x).abs()
    magnitudes = torch.where(magnitudes.isfinite(), magnitudes, 0)
    return magnitudes.amax() if magnitudes.numel() else magnitudes.sum()
