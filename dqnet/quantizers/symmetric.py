"""Symmetric quantization: a scale alone, zero has the code 0.

Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 2.2, eqs. 5 to 8, and its remark on
the narrow range, with which two products fit into 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dqnet.formats import Format
from dqnet.quantizers.affine import AffineInput, AffineWeight
from dqnet.quantizers.grid import Grid, symmetric_grid


class SymmetricWeight(AffineWeight, name="symmetric", of="weight"):
    """Weights.

    Args:
        formats: as of any quantizer.
        narrow_range: codes −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1, without −2ᵇ⁻¹.
        options: as of :class:`~dqnet.quantizers.affine.AffineWeight`.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = True,
        channels: int | None = None,
        granularity: str = "per_channel",
        observer: str = "min_max",
        momentum: float = 0.99,
        percentile: float = 99.99,
        rounding: str = "nearest",
        narrow_range: bool = True,
    ) -> None:
        super().__init__(
            formats, signed=signed, channels=channels, granularity=granularity, observer=observer,
            momentum=momentum, percentile=percentile, rounding=rounding,
        )  # fmt: skip
        self.narrow_range = narrow_range

    def make_grid(self, low: Tensor, high: Tensor, k: int, signed: bool) -> Grid:
        return symmetric_grid(low, high, self.formats[k].bits, True, self.narrow_range)


class SymmetricInput(AffineInput, name="symmetric", of="input"):
    """Inputs: codes 0 … 2ᵇ − 1 where none was negative, else −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1."""

    def make_grid(self, low: Tensor, high: Tensor, k: int, signed: bool) -> Grid:
        return symmetric_grid(low, high, self.formats[k].bits, signed, False)
