"""``form=qonnx``: the network as it was simulated, in QONNX, for FPGAs (FINN, hls4ml).

QONNX (Pappalardo et al. 2022, https://arxiv.org/abs/2206.07527) has one operator, ``Quant``, that
rounds to integers of any number of bits and returns the numbers that they stand for, of inputs and
of weights alike; ``BipolarQuant`` knows −1 and 1 alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dqnet.errors import UserError
from dqnet.export import nodes as n
from dqnet.export.onnx_exact import ExactForm
from dqnet.export.onnx_writer import Writer

DOMAIN = "qonnx.custom_op.general"


class Integer(NamedTuple):
    """What ``Quant`` is told: codes of zero, bits, whether negative, whether without the lowest."""

    zero_points: np.ndarray
    bits: int
    signed: bool
    narrow: bool


class QonnxForm(ExactForm):
    """Writes the nodes of a static network.

    Raises:
        UserError: for a dynamic one.
    """

    def __init__(self, graph: n.Graph, writer: Writer) -> None:
        super().__init__(graph, writer)
        if graph.routing is not None:
            raise UserError(
                "QONNX has no form of a dynamic network: export it with form=exact or integer, or "
                "train a static one (one precision in quant.widths)"
            )

    def _real(self, name: str) -> str:
        return name  # Quant returns numbers

    def _quantize(self, real: str, grid: n.Grid, output: str) -> None:
        own = integer_of(np.array([[grid.low, grid.high]]) - grid.zero_point, 8)
        real = self._within(real, grid, own, output)
        self._quant(real, np.float32(grid.scale), own._replace(zero_points=own.zero_points[0]),
                    output, output)  # fmt: skip

    def _within(self, real: str, grid: n.Grid, own: Integer, output: str) -> str:
        """A value that ``Quant`` does not round to codes outside the grid."""
        lowest, highest = ends_of(own)
        ends = ((grid.low, lowest, "Max"), (grid.high, highest, "Min"))
        for end, possible, operator in ends:
            code = end - grid.zero_point
            if code != possible - own.zero_points[0]:
                limit = code * np.float32(grid.scale)
                name = f"{output}.{operator.lower()}"
                real = self._with_constant(operator, real, limit, name)
        return real

    def _weight(self, weight: n.Weight | np.ndarray, name: str) -> str:
        if isinstance(weight, np.ndarray):
            return super()._weight(weight, name)
        if weight.small_float is not None:
            raise UserError(
                f"layer {name!r} has weights of small floats, which form=qonnx has not: "
                "export with form=exact"
            )
        shape = (-1, *[1] * (weight.codes.ndim - 1))
        # Where a norm has switched a channel off: Quant divides by the scale.
        scale = np.maximum(weight.scale, np.finfo(np.float32).tiny).astype(np.float32)
        scale = scale.reshape(shape)
        real = self.writer.constant(f"{name}.weight.real", weight.codes * scale, np.float32)
        name = f"{name}.weight"
        if (np.abs(weight.codes) == 1).all():
            parts = [real, self.writer.constant(f"{name}.scale", scale)]
            return self.writer.new("BipolarQuant", parts, name, DOMAIN)
        own = integer_of(weight.codes.reshape(len(weight.codes), -1), weight.bits)
        own = own._replace(zero_points=own.zero_points.reshape(shape))
        return self._quant(real, scale, own, self.writer.free(name), name)

    def _quant(self, real: str, scale: np.ndarray, own: Integer, output: str, name: str) -> str:
        zeros = own.zero_points if own.zero_points.any() else 0
        parts = [real, self.writer.constant(f"{name}.scale", scale, np.float32)]
        parts.append(self.writer.constant(f"{name}.zero_point", zeros, np.float32))
        parts.append(self.writer.constant(f"{name}.bits", own.bits, np.float32))
        flags = {"signed": int(own.signed), "narrow": int(own.narrow), "rounding_mode": "ROUND"}
        return self.writer.add("Quant", parts, output, DOMAIN, **flags)


def integer_of(codes: np.ndarray, bits: int) -> Integer:
    """The fewest bits that hold codes ``[R, M]``, with a zero point of 0 if so many bits allow it.

    Args:
        codes: whole numbers around zero.
        bits: what their quantizer used. Where these do not hold codes around zero, each row has a
            zero point of its own; doubled codes, which have no zero among them, take a bit more.
    """
    lows, highs = codes.min(1), codes.max(1)
    low, high = int(lows.min()), int(highs.max())
    none = np.zeros(len(codes), np.int64)
    if low >= 0:
        return Integer(none, max(high.bit_length(), 1), False, False)
    signed = max((-low - 1).bit_length(), high.bit_length()) + 1
    narrow = low > -(2 ** (signed - 1))
    zero_points = np.maximum(-lows, 0).astype(np.int64)
    shifted = int((highs + zero_points).max()).bit_length()
    if signed > bits and (shifted <= bits or signed > 8):
        return Integer(zero_points, shifted, False, False)
    return Integer(none, signed, True, narrow)


def ends_of(own: Integer) -> tuple[int, int]:
    """The lowest and the highest code that ``Quant`` rounds to."""
    if not own.signed:
        return 0, 2**own.bits - 1
    return -(2 ** (own.bits - 1)) + own.narrow, 2 ** (own.bits - 1) - 1
