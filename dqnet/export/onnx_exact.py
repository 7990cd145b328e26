"""``form=exact``: the network as it was simulated, in standard ONNX.

A quantized layer is Quantize → Dequantize → Conv with a weight of 8-bit codes that is dequantized:
the pattern that runtimes know as an integer convolution with a float32 result. Everything between
layers is float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dqnet.export import nodes as n
from dqnet.export.onnx_routing import write_controller, write_routed, write_routing
from dqnet.export.onnx_writer import Writer

#: a slice without an end
END = np.iinfo(np.int64).max


class ExactForm:
    """Writes the nodes of a graph.

    Args:
        graph: the network.
        writer: where they go.
        reals: codes → the float32 value that was dequantized from them.
        packed: whether weights of up to 4 bits are stored in 4 bits.
    """

    def __init__(
        self, graph: n.Graph, writer: Writer, reals: dict[str, str] | None = None,
        packed: bool = False,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.writer = writer
        self.reals = dict(reals or {})
        self.packed = packed

    def write(self, node: n.Node) -> None:
        """Appends what computes a node's output."""
        own = node.operation
        if isinstance(own, n.Choose):
            write_routing(self.writer, self.graph, node)
            return
        if isinstance(own, n.Routed):
            write_routed(self.writer, self.graph, node, self._branch)
            return
        grid = self.graph.grids.get(node.output)
        output = node.output if grid is None else self.writer.free(f"{node.output}.real")
        inputs = [self._real(name) for name in node.inputs]
        if isinstance(own, n.Identity) and grid is not None:
            output = inputs[0]
        else:
            _WRITE[type(own)](self, own, inputs, output)
        if grid is not None:
            self._quantize(output, grid, node.output)

    def _branch(self) -> ExactForm:
        return ExactForm(self.graph, Writer(self.writer), self.reals, self.packed)

    def _quantize(self, real: str, grid: n.Grid, output: str) -> None:
        # Not Clip: ONNX Runtime takes it for the quantization itself and rounds the bias to it.
        if grid.high < 255:
            top = (grid.high - grid.zero_point) * np.float32(grid.scale)
            real = self._with_constant("Min", real, top, f"{output}.min")
        if grid.low > 0:
            bottom = (grid.low - grid.zero_point) * np.float32(grid.scale)
            real = self._with_constant("Max", real, bottom, f"{output}.max")
        self.writer.add("QuantizeLinear", [real, *self._grid(grid, output)], output)

    def _with_constant(self, operator: str, real: str, limit: np.ndarray, name: str) -> str:
        constant = self.writer.constant(f"{name}.limit", limit, np.float32)
        return self.writer.new(operator, [real, constant], name)

    def _grid(self, grid: n.Grid, name: str) -> tuple[str, str]:
        scale = self.writer.constant(f"{name}.scale", grid.scale, np.float32)
        return scale, self.writer.constant(f"{name}.zero_point", grid.zero_point, np.uint8)

    def _real(self, name: str) -> str:
        """A value as float32."""
        grid = self.graph.grids.get(name)
        if grid is None:
            return name
        if name not in self.reals:
            inputs = [name, *self._grid(grid, name)]
            self.reals[name] = self.writer.new("DequantizeLinear", inputs, f"{name}.real")
        return self.reals[name]

    def _identity(self, own: n.Identity, inputs: list[str], output: str) -> None:
        self.writer.add("Identity", inputs, output)

    def _conv(self, own: n.Conv, inputs: list[str], output: str) -> None:
        weight = self._weight(own.weight, output)
        bias = self.writer.constant(f"{output}.bias", own.bias, np.float32)
        if not own.strides:
            self.writer.add("Gemm", [*inputs, weight, bias], output, transB=1)
            return
        form = {"strides": own.strides, "pads": own.pads, "dilations": own.dilations}
        self.writer.add("Conv", [*inputs, weight, bias], output, group=own.groups, **form)

    def _weight(self, weight: n.Weight | np.ndarray, name: str) -> str:
        if isinstance(weight, np.ndarray):
            return self.writer.constant(f"{name}.weight", weight, np.float32)
        if weight.small_float is not None:
            own, zero_points = weight.small_float, np.zeros(1)
            codes = self.writer.constant_of_float8(f"{name}.weight.codes", weight.codes, own)
        else:
            whole, zero_points = as_bytes(weight.codes)
            codes = self._codes(f"{name}.weight.codes", whole)
        parts = [codes]
        parts.append(self.writer.constant(f"{name}.weight.scale", weight.scale, np.float32))
        if zero_points.any():
            parts.append(self.writer.constant(f"{name}.weight.zero_point", zero_points))
        return self.writer.new("DequantizeLinear", parts, f"{name}.weight", axis=0)

    def _codes(self, name: str, codes: np.ndarray) -> str:
        """In 4 bits if they fit: runtimes unpack them once, when they load the file."""
        if not self.packed or codes.min() < -8 or codes.max() > 7:
            return self.writer.constant(name, codes)
        packed = self.writer.constant_of_4_bits(f"{name}.packed", codes)
        kind = self.writer.type_of(codes.dtype)
        return self.writer.new("Cast", [packed], name, to=kind)

    def _affine(self, own: n.Affine, inputs: list[str], output: str) -> None:
        rank = self._rank(own.scale)
        scale = self.writer.constant(f"{output}.scale", own.scale.reshape(rank), np.float32)
        shift = self.writer.constant(f"{output}.shift", own.shift.reshape(rank), np.float32)
        product = self.writer.new("Mul", [*inputs, scale], f"{output}.product")
        self.writer.add("Add", [product, shift], output)

    @staticmethod
    def _rank(per_channel: np.ndarray) -> tuple[int, ...]:
        return (1, len(per_channel), 1, 1)

    def _clip(self, own: n.Clip, inputs: list[str], output: str) -> None:
        low, high = own.low, own.high
        if np.ndim(low) or np.ndim(high):
            limits = [
                self.writer.constant(
                    f"{output}.limit", np.reshape(end, self._rank(end)), np.float32
                )
                for end in (low, high)
            ]
            above = self.writer.new("Max", [*inputs, limits[0]], f"{output}.above")
            self.writer.add("Min", [above, limits[1]], output)
        elif (low, high) == (0, np.inf):
            self.writer.add("Relu", inputs, output)
        else:
            limits = [self.writer.constant(f"{output}.limit", x, np.float32) for x in (low, high)]
            self.writer.add("Clip", [*inputs, *limits], output)

    def _add(self, own: n.Add, inputs: list[str], output: str) -> None:
        self.writer.add("Add", inputs, output)

    def _concat(self, own: n.Concat, inputs: list[str], output: str) -> None:
        self.writer.add("Concat", inputs, output, axis=1)

    def _pool(self, own: n.Pool, inputs: list[str], output: str) -> None:
        form = {"kernel_shape": own.kernel, "strides": own.strides, "pads": own.pads}
        if own.kind == "max":
            self.writer.add("MaxPool", inputs, output, **form)
        else:
            self.writer.add("AveragePool", inputs, output, count_include_pad=1, **form)

    def _mean(self, own: n.Mean, inputs: list[str], output: str) -> None:
        axes = self.writer.constant(f"{output}.axes", [2, 3], np.int64)
        self.writer.add("ReduceMean", [*inputs, axes], output, keepdims=int(own.keep))

    def _flatten(self, own: n.Flatten, inputs: list[str], output: str) -> None:
        self.writer.add("Flatten", inputs, output, axis=1)

    def _slice(self, own: n.Slice, inputs: list[str], output: str) -> None:
        parts = slice_constants(self.writer, own, (1, 2, 3), output)
        self.writer.add("Slice", [*inputs, *parts], output)

    def _pad(self, own: n.Pad, inputs: list[str], output: str) -> None:
        pads, axes = pad_constants(self.writer, own, (1, 2, 3), output)
        self.writer.add("Pad", [*inputs, pads, "", axes], output)

    def _controller(self, own: n.Controller, inputs: list[str], output: str) -> None:
        write_controller(self.writer, own, inputs[0], output, (2, 3))


_WRITE: dict[type, Callable[..., None]] = {
    n.Identity: ExactForm._identity,
    n.Conv: ExactForm._conv,
    n.Affine: ExactForm._affine,
    n.Clip: ExactForm._clip,
    n.Add: ExactForm._add,
    n.Concat: ExactForm._concat,
    n.Pool: ExactForm._pool,
    n.Mean: ExactForm._mean,
    n.Flatten: ExactForm._flatten,
    n.Slice: ExactForm._slice,
    n.Pad: ExactForm._pad,
    n.Controller: ExactForm._controller,
}


def as_bytes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes ``[O, ...]`` in 8 bits, and the code of zero of each channel.

    int8 with zeros where they fit; else uint8, as after a range that is not symmetric, or where a
    norm of negative scale has made 128 of −128.
    """
    if codes.min() >= -128 and codes.max() <= 127:
        return codes.astype(np.int8), np.zeros(len(codes), np.int8)
    zero_points = np.maximum(-codes.reshape(len(codes), -1).min(1), 0)
    shifted = codes + zero_points.reshape(-1, *[1] * (codes.ndim - 1))
    return shifted.astype(np.uint8), zero_points.astype(np.uint8)


def slice_constants(
    writer: Writer, own: n.Slice, axes: tuple[int, int, int], name: str
) -> tuple[str, ...]:
    """The further inputs of ONNX's Slice: starts, ends, axes, steps.

    Args:
        axes: of the channels, the rows and the columns.
    """
    cut = [(axis, part) for axis, part in zip(axes, own.parts, strict=False) if any(part)]
    lists = {
        "starts": [start or 0 for _, (start, _, _) in cut],
        "ends": [END if end is None else end for _, (_, end, _) in cut],
        "axes": [axis for axis, _ in cut],
        "steps": [step or 1 for _, (_, _, step) in cut],
    }
    return tuple(writer.constant(f"{name}.{key}", value, np.int64) for key, value in lists.items())


def pad_constants(
    writer: Writer, own: n.Pad, axes: tuple[int, int, int], name: str
) -> tuple[str, str]:
    """The pads and axes of ONNX's Pad: before each axis, then behind each.

    Args:
        axes: of the channels, the rows and the columns.
    """
    pairs = [own.margins[i : i + 2] for i in range(0, len(own.margins), 2)]
    order = axes[::-1][: len(pairs)]
    before, behind = zip(*pairs, strict=True)
    return (
        writer.constant(f"{name}.pads", [*before, *behind], np.int64),
        writer.constant(f"{name}.axes", order, np.int64),
    )
