"""What static networks cost: the measure of targets, by any cost model.

A target of b bits is what the network costs with its quantized layers at b bits, of which those
that are pinned (``first_last=8``) stay as they are; what is in full precision is not counted.
Convolutions are multiplied directly, so that a Winograd convolution costs as much as one of fewer
bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dqnet.costs.base import CostModel, find_cost
from dqnet.errors import UserError
from dqnet.formats import MAX_BITS, MIN_BITS, Precision
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan

BIT_FLOPS = "bit_flops"


class StaticCosts:
    """The cost of the static network of b bits as a function of b, and its inverse.

    Whole widths are priced by the model; if it has prices for some precisions alone, those are, by
    their widths. Between them the cost is linear in b², as Bit-FLOPs are everywhere.

    Args:
        model: a converted network; of its layers the sizes count, and which ones are pinned.
        by: the cost model.

    Raises:
        UserError: if the cost model has a price of no width for all of the layers.
    """

    def __init__(self, model: QuantizedModel, by: str | CostModel = BIT_FLOPS) -> None:
        by, layers = find_cost(by), model.layers
        layers = tuple(replace(own, winograd=None) for own in layers)
        following = [own for own in layers if own.role != "full" and not own.pinned]
        priced = getattr(by, "precisions", None)
        if priced is None:
            priced = [Precision.parse(bits) for bits in range(MIN_BITS, MAX_BITS + 1)]
        if not priced:
            raise UserError(
                "the table of costs has no precision for every layer, so that no target in bits "
                "can be said in it"
            )
        fixed = pinned_cost(layers, by)
        costs: dict[float, float] = {}
        for own in priced:
            total = fixed + sum(by.layer(layer, own) for layer in following)
            costs[own.width] = min(total, costs.get(own.width, total))
        self._widths = np.array(sorted(costs))
        self._costs = np.array([costs[width] for width in self._widths])
        self._empty = not following

    def cost(self, bits: float) -> float:
        """What the static network of ``bits`` costs; fractions are allowed.

        Beyond the widths that have a price the line goes on.
        """
        squares = self._widths**2
        if len(squares) == 1:
            return float(self._costs[0])
        above = int(np.clip(np.searchsorted(squares, bits**2), 1, len(squares) - 1))
        low, high = squares[above - 1 : above + 1]
        cheap, dear = self._costs[above - 1 : above + 1]
        # Divided last, so that whole costs stay whole.
        return float(((high - bits**2) * cheap + (bits**2 - low) * dear) / (high - low))

    def width(self, cost: float) -> float:
        """The ``bits`` of a cost; of several, where measured costs fall with b, the least."""
        if self._empty:
            return 0.0
        rising = np.maximum.accumulate(self._costs)
        return float(np.interp(cost, rising, self._widths**2) ** 0.5)


def static_bit_flops(model: QuantizedModel, bits: float) -> float:
    """What the network costs with its quantized layers at ``bits`` (fractions allowed).

    It is the target of ``target_bits=bits``: bits² × the multiply-accumulates of the quantized
    layers, of which those that are pinned (``first_last=8``) stay as they are; what is in full
    precision is not counted.
    """
    return StaticCosts(model).cost(bits)


def static_cost(layers: Iterable[LayerPlan], by: str | CostModel = BIT_FLOPS) -> float:
    """The cost in the static layers, the same for every image."""
    model = find_cost(by)
    return sum(
        model.layer(layer, layer.precisions[0]) for layer in layers if layer.role == "static"
    )


def pinned_cost(layers: Iterable[LayerPlan], by: str | CostModel = BIT_FLOPS) -> float:
    """Of one image in the layers that a target does not change."""
    return static_cost((layer for layer in layers if layer.pinned), by)


def following_macs(layers: Iterable[LayerPlan]) -> int:
    """Multiply-accumulates of one image in the quantized layers that are not pinned."""
    return sum(layer.macs for layer in layers if layer.role != "full" and not layer.pinned)
