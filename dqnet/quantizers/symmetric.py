"""Symmetric quantization: a scale alone, zero has the code 0.

Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 2.2, eqs. 5 to 8, and its remark on
the narrow range, with which two products fit into 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dqnet.formats import Format
from dqnet.quantizers.affine import AffineInput, AffineWeight
from dqnet.quantizers.grid import Grid, symmetric_grid


class SymmetricWeight(AffineWeight, name="symmetric", of="weight"):
    """Weights.

    Args:
        narrow_range: codes −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1, without −2ᵇ⁻¹.
        formats, options: as of :class:`~dqnet.quantizers.affine.AffineWeight`.
    """

    def __init__(
        self, formats: Sequence[Format], *, narrow_range: bool = True, **options: Any
    ) -> None:
        super().__init__(formats, **options)
        self.narrow_range = narrow_range

    def make_grid(self, low: Tensor, high: Tensor, k: int, signed: bool) -> Grid:
        return symmetric_grid(low, high, self.formats[k].bits, True, self.narrow_range)


class SymmetricInput(AffineInput, name="symmetric", of="input"):
    """Inputs: codes 0 … 2ᵇ − 1 where none was negative, else −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1."""

    def make_grid(self, low: Tensor, high: Tensor, k: int, signed: bool) -> Grid:
        return symmetric_grid(low, high, self.formats[k].bits, signed, False)
