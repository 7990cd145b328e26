"""``form=integer``: every value is an 8-bit code, in operators of ONNX Runtime.

Images are ``[N, H, W, C]`` within, which its integer convolutions are fastest in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dqnet.export import nodes as n
from dqnet.export.onnx_exact import pad_constants, slice_constants
from dqnet.export.onnx_routing import write_controller, write_routed, write_routing
from dqnet.export.onnx_writer import MICROSOFT, Writer


class IntegerForm:
    """Writes the nodes of a graph from :func:`dqnet.export.integer.to_integer`.

    Args:
        graph: the network.
        writer: where they go.
        flat: values without image axes.
    """

    def __init__(self, graph: n.Graph, writer: Writer, flat: set[str] | None = None) -> None:
        self.graph = graph
        self.writer = writer
        self.flat = {graph.logits} if flat is None else flat

    def write(self, node: n.Node) -> None:
        """Appends what computes a node's output."""
        own = node.operation
        if isinstance(own, n.Choose):
            write_routing(self.writer, self.graph, node)
        elif isinstance(own, n.Routed):
            write_routed(self.writer, self.graph, node, self._branch)
        else:
            _WRITE[type(own)](self, own, node)

    def _branch(self) -> IntegerForm:
        return IntegerForm(self.graph, Writer(self.writer), self.flat)

    def _scale_and_zero(self, value: str) -> tuple[str, str]:
        """The grid of a value as two 0-dimensional constants."""
        grid = self.graph.grids[value]
        scale = self.writer.constant(f"{value}.scale", grid.scale, np.float32)
        return scale, self.writer.constant(f"{value}.zero_point", grid.zero_point, np.uint8)

    def _rounded(self, operator: str, inputs: list[str], node: n.Node, **attributes: int) -> None:
        """An operator that returns codes, which are then brought into the grid's range."""
        grid = self.graph.grids[node.output]
        domain = "" if operator in _STANDARD else MICROSOFT
        if (grid.low, grid.high) == (0, 255):
            self.writer.add(operator, inputs, node.output, domain, **attributes)
            return
        name = f"{node.output}.all"
        wide = self.writer.new(operator, inputs, name, domain, **attributes)
        self._clipped(wide, grid, node.output)

    def _clipped(self, codes: str, grid: n.Grid, output: str) -> None:
        ends = (("low", grid.low), ("high", grid.high))
        limits = [self.writer.constant(f"{output}.{key}", end, np.uint8) for key, end in ends]
        self.writer.add("Clip", [codes, *limits], output)

    def _identity(self, own: n.Identity, node: n.Node) -> None:
        (value,) = node.inputs
        output = node.output
        if output not in self.graph.grids:
            self.writer.add("Identity", [value], output)
            return
        if value in self.graph.grids:
            real = self._real(value)
        else:
            real = self.writer.new("Transpose", [value], f"{output}.nhwc", perm=(0, 2, 3, 1))
        self._rounded("QuantizeLinear", [real, *self._scale_and_zero(output)], node)

    def _real(self, value: str) -> str:
        inputs = [value, *self._scale_and_zero(value)]
        return self.writer.new("DequantizeLinear", inputs, f"{value}.real")

    def _conv(self, own: n.Conv, node: n.Node) -> None:
        (value,), output = node.inputs, node.output
        codes = own.weight.codes.astype(np.int8)
        weight = self.writer.constant(f"{output}.weight.codes", codes)
        scale = self.writer.constant(f"{output}.weight.scale", own.weight.scale, np.float32)
        zeros = self.writer.constant(f"{output}.weight.zero_point", 0, np.int8)
        bias = self.writer.constant(f"{output}.bias", own.bias_codes, np.int32)
        parts = [value, *self._scale_and_zero(value), weight, scale, zeros]
        if not own.strides:
            self.flat.add(output)
            zeros = self.writer.constant(f"{output}.zeros", np.zeros(len(codes)), np.int8)
            parts = [*parts[:-1], zeros, bias]
            if output in self.graph.grids:
                parts += self._scale_and_zero(output)
                self._rounded("QGemm", parts, node, transB=1)
            else:
                self.writer.add("QGemm", parts, output, MICROSOFT, transB=1)
            return
        form = {"strides": own.strides, "pads": own.pads, "dilations": own.dilations}
        form |= {"group": own.groups, "channels_last": 1}
        parts += [*self._scale_and_zero(output), bias]
        self._rounded("QLinearConv", parts, node, **form)

    def _add(self, own: n.Add, node: n.Node) -> None:
        parts = [part for value in node.inputs for part in (value, *self._scale_and_zero(value))]
        self._rounded("QLinearAdd", [*parts, *self._scale_and_zero(node.output)], node)

    def _concat(self, own: n.Concat, node: n.Node) -> None:
        parts = []
        for value in node.inputs:
            part = value
            if self.graph.grids[value] != self.graph.grids[node.output]:
                inputs = [self._real(value), *self._scale_and_zero(node.output)]
                part = self.writer.new("QuantizeLinear", inputs, f"{value}.again")
            parts.append(part)
        axis = 1 if node.inputs[0] in self.flat else 3
        self._rounded("Concat", parts, node, axis=axis)

    def _clip(self, own: n.Clip, node: n.Node) -> None:
        self._clipped(node.inputs[0], self.graph.grids[node.output], node.output)

    def _pool(self, own: n.Pool, node: n.Node) -> None:
        form = {"kernel_shape": own.kernel, "strides": own.strides, "pads": own.pads}
        if own.kind == "max":
            self.writer.add("NhwcMaxPool", [*node.inputs], node.output, MICROSOFT, **form)
            return
        # A mean is a sum of products with 1, of each channel on its own.
        (value,) = node.inputs
        channels = own.channels
        codes = np.ones((channels, 1, *own.kernel), np.int8)
        share = np.full(channels, 1 / np.prod(own.kernel))
        parts = [
            value, *self._scale_and_zero(value),
            self.writer.constant(f"{node.output}.ones", codes),
            self.writer.constant(f"{node.output}.share", share, np.float32),
            self.writer.constant(f"{node.output}.zero", 0, np.int8),
            *self._scale_and_zero(node.output),
        ]  # fmt: skip
        form = {"strides": own.strides, "pads": own.pads, "group": channels, "channels_last": 1}
        self._rounded("QLinearConv", parts, node, **form)

    def _mean(self, own: n.Mean, node: n.Node) -> None:
        (value,) = node.inputs
        parts = [value, *self._scale_and_zero(value), *self._scale_and_zero(node.output)]
        if own.keep:
            self._rounded("QLinearGlobalAveragePool", parts, node, channels_last=1)
            return
        name = f"{node.output}.pooled"
        pooled = self.writer.new(
            "QLinearGlobalAveragePool", parts, name, MICROSOFT, channels_last=1
        )
        self.flat.add(node.output)
        self._rounded("Flatten", [pooled], node, axis=1)

    def _flatten(self, own: n.Flatten, node: n.Node) -> None:
        (value,) = node.inputs
        if value not in self.flat:
            perm = (0, 3, 1, 2)
            value = self.writer.new("Transpose", [value], f"{node.output}.nchw", perm=perm)
        self.flat.add(node.output)
        self.writer.add("Flatten", [value], node.output, axis=1)

    def _slice(self, own: n.Slice, node: n.Node) -> None:
        parts = slice_constants(self.writer, own, (3, 1, 2), node.output)
        self.writer.add("Slice", [*node.inputs, *parts], node.output)

    def _pad(self, own: n.Pad, node: n.Node) -> None:
        pads, axes = pad_constants(self.writer, own, (3, 1, 2), node.output)
        zero = self.graph.grids[node.output].zero_point
        fill = self.writer.constant(f"{node.output}.fill", zero, np.uint8)
        self.writer.add("Pad", [*node.inputs, pads, fill, axes], node.output)

    def _controller(self, own: n.Controller, node: n.Node) -> None:
        (value,) = node.inputs
        axes = (1, 2)
        if value in self.graph.grids:
            value = self._real(value)
        write_controller(self.writer, own, value, node.output, axes)


#: operators of ONNX itself
_STANDARD = ("QuantizeLinear", "Concat", "Flatten")
_WRITE: dict[type, Callable[..., None]] = {
    n.Identity: IntegerForm._identity,
    n.Conv: IntegerForm._conv,
    n.Add: IntegerForm._add,
    n.Concat: IntegerForm._concat,
    n.Clip: IntegerForm._clip,
    n.Pool: IntegerForm._pool,
    n.Mean: IntegerForm._mean,
    n.Flatten: IntegerForm._flatten,
    n.Slice: IntegerForm._slice,
    n.Pad: IntegerForm._pad,
    n.Controller: IntegerForm._controller,
}
