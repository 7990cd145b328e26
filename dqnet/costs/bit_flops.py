"""Bit-FLOPs: multiply-accumulates × weight bits × input bits (Liu et al. 2022, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

from dqnet.costs.base import cost_model
from dqnet.formats import FULL_PRECISION_BITS, Precision
from dqnet.plan import LayerPlan


@cost_model("bit_flops")
@dataclass(frozen=True)
class BitFlops:
    """A layer in full precision counts as one of 32 × 32 bits."""

    def layer(self, layer: LayerPlan, precision: Precision | None) -> int:
        """Bit-FLOPs of one image."""
        bits = FULL_PRECISION_BITS**2 if precision is None else precision.bit_product
        return layer.macs * bits
