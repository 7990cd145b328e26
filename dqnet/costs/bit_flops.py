"""Bit-FLOPs: multiply-accumulates × weight bits × input bits (Liu et al. 2022, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

from dqnet.costs.base import cost_model
from dqnet.errors import UserError
from dqnet.formats import FULL_PRECISION_BITS, Precision
from dqnet.layers.input_digits import digit_count
from dqnet.plan import LayerPlan


@cost_model("bit_flops")
@dataclass(frozen=True)
class BitFlops:
    """A layer in full precision counts as one of 32 × 32 bits.

    A Winograd convolution counts by its products of taps, at their bits; the additions of its
    transforms are no more counted than those of a bias.

    Attributes:
        hardware_bits: Q of hardware that multiplies Q × Q bits: wider numbers go through it digit
            by digit (:mod:`dqnet.layers.input_digits`), and a part of a digit costs as much as a
            whole one. ``None``: hardware that takes every number as wide as it is, which costs the
            same wherever Q divides the bits.
    """

    hardware_bits: int | None = None
    unit: str = "Bit-FLOPs"

    def __post_init__(self) -> None:
        if self.hardware_bits is not None and self.hardware_bits < 1:
            raise UserError(f"hardware_bits {self.hardware_bits} must be at least 1, or none")

    def layer(self, layer: LayerPlan, precision: Precision | None) -> int:
        """Bit-FLOPs of one image."""
        if precision is None:
            return layer.macs * FULL_PRECISION_BITS**2
        count, own = layer.products(precision)
        if self.hardware_bits is None:
            return count * own.bit_product
        return count * self.passes(own) * self.hardware_bits**2

    def passes(self, precision: Precision) -> int:
        """How often a multiply-accumulate goes through hardware of ``hardware_bits``."""
        pair = precision.weight.bits, precision.input.bits
        weight, own = (digit_count(bits, self.hardware_bits) for bits in pair)
        return weight * own
