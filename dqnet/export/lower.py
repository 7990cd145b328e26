"""From a converted network to its integer graph.

A quantized layer becomes a quantization of its input and a product of codes, and the norm that
alone reads a layer's output becomes part of that layer's scale and bias. Everything between layers
stays as it was: what is not quantized in the network is not in the graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.errors import UserError
from dqnet.export import nodes as n
from dqnet.export.grids import grid_of, scaled, weight_of
from dqnet.export.lower_controller import controller_of
from dqnet.graph import Operation, Operations, operations
from dqnet.layers import QuantConv2d, QuantLayer
from dqnet.layers.geometry import ConvGeometry
from dqnet.network import QuantizedModel

#: values that the caller of an exported network knows by name
RESERVED = ("images", "logits", "routing", "forced_routing", "budget_lambda")
#: kinds of operations whose options are those of a node
PLAIN = {
    "add": lambda options: n.Add(),
    "concat": lambda options: n.Concat(),
    "flatten": lambda options: n.Flatten(),
    "mean": lambda options: n.Mean(**options),
    "pad": lambda options: n.Pad(**options),
    "clip": lambda options: n.Clip(*(_numbers(options[end]) for end in ("low", "high"))),
    "slice": lambda options: n.Slice(
        tuple((part.start, part.stop, part.step) for part in options["slices"][1:])
    ),
}
POOLS = {"max_pool": "max", "average_pool": "mean"}


def _numbers(limit: float | Tensor) -> float | np.ndarray:
    return _array(limit) if isinstance(limit, Tensor) else float(limit)


def _pool(kind: str, options: dict[str, Any], channels: int) -> n.Pool:
    pads = options["pads"] * 2
    return n.Pool(kind, options["kernel"], options["stride"], pads, channels)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()


@torch.no_grad()
def lower(model: nn.Module) -> n.Graph:
    """The integer graph of a converted network, as it evaluates.

    Raises:
        UserError: if the model is not a converted one, its code cannot be traced, or it has a layer
            or an operation that the graph has no form of; the operation and its module are named.
    """
    if not isinstance(model, QuantizedModel):
        raise UserError("the network is in full precision: convert it first (quant=lsq, ...)")
    with model.unquantized():
        steps = operations(model.backbone, model.image_shape)
    training = model.training
    model.eval()
    try:
        return _Lowering(model).run(steps)
    finally:
        model.train(training)


class _Lowering:
    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self.graph = n.Graph(model.image_shape)
        self.values: list[str] = []  # of each operation
        self.taken: set[str] = {*RESERVED}
        self.between = model.value_quantizers
        self.columns = {layer.name: i for i, layer in enumerate(model.routed_layers)}

    def run(self, steps: Operations) -> n.Graph:
        if self.model.controller is not None and self.model.split_point is None:
            self._route(self.graph.image)
        folded = norms_of_layers(steps)
        for index, step in enumerate(steps.steps):
            if step.kind == "image":
                value = self.graph.image
            elif index in folded.values():
                value = self.values[step.inputs[0]]  # the layer has done it
            elif step.kind == "layer":
                norm = folded.get(index)
                value = self._layer(step, steps, None if norm is None else steps.steps[norm])
            else:
                value = self._other(step)
            for name in step.result_of:
                if name in self.between:
                    grid = grid_of(
                        self.between[name].output_quantizer, 0, f"the output of {name!r}"
                    )
                    value = self._on_grid(value, grid, f"{name}.output")
            self.values.append(value)
            if self.model.split_point in step.result_of and self.model.controller is not None:
                self._route(value)
        last = self.values[-1]
        self.add(n.Identity(), (last,), self.graph.logits)
        return self.graph

    def add(
        self, operation: n.Operation, inputs: tuple[str, ...], name: str, grid: n.Grid | None = None
    ) -> str:
        """Appends a node whose output has that name, or one like it."""
        output = name if name == self.graph.logits else self._free(name)
        self.graph.nodes.append(n.Node(operation, inputs, output))
        if grid is not None:
            self.graph.grids[output] = grid
        return output

    def _free(self, name: str) -> str:
        own, count = name, 1
        while own in self.taken:
            count += 1
            own = f"{name}.{count}"
        self.taken.add(own)
        return own

    def _on_grid(self, value: str, grid: n.Grid, name: str) -> str:
        """The codes of a value, which a layer before may have wanted already."""
        if self.graph.grids.get(value) == grid:
            return value
        for node in self.graph.nodes:
            same = isinstance(node.operation, n.Identity) and node.inputs == (value,)
            if same and self.graph.grids.get(node.output) == grid:
                return node.output
        return self.add(n.Identity(), (value,), name, grid)

    def _layer(self, step: Operation, steps: Operations, norm: Operation | None) -> str:
        layer, name, x = step.module, step.name, self.values[step.inputs[0]]
        shape = steps.steps[step.inputs[0]].shape
        form = _form(layer, name, shape)
        if getattr(layer, "winograd", None) is not None:
            raise UserError(
                f"layer {name!r} is a quantized Winograd convolution, which exported networks have "
                "no form of: train with quant.winograd.tile=null to export it"
            )
        if not isinstance(layer, QuantLayer):
            weight = _array(layer.weight)
            scale, bias = _with_norm(np.ones(len(weight)), _bias(layer), norm)
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            return self.add(n.Conv(weight.astype(np.float32), bias, **form), (x,), name)
        convs = [self._conv(layer, k, name, norm, form) for k in range(len(layer.precisions))]
        grids = [
            grid_of(layer.input_quantizer, layer.input_format(k), f"the input of layer {name!r}")
            for k in range(len(convs))
        ]
        if len(convs) == 1:
            return self.add(convs[0], (self._on_grid(x, grids[0], f"{name}.input"),), name)
        return self._routed(name, x, layer, convs, grids)

    def _routed(
        self, name: str, x: str, layer: QuantLayer, convs: list[n.Conv], grids: list[n.Grid]
    ) -> str:
        """A layer at all its precisions, of which each image runs one."""
        output = self._free(name)
        choices = {}
        for conv, grid, precision in zip(convs, grids, layer.precisions, strict=True):
            codes = self._free(f"{name}.input.{precision}")
            self.graph.grids[codes] = grid
            column = self.model.precisions.index(precision)
            choices[column] = (
                n.Node(n.Identity(), (x,), codes),
                n.Node(conv, (codes,), output),
            )
        routed = n.Routed(self.columns[name], choices)
        self.graph.nodes.append(n.Node(routed, (x, self.graph.routing), output))
        return output

    def _conv(
        self, layer: QuantLayer, k: int, name: str, norm: Operation | None, form: dict[str, Any]
    ) -> n.Conv:
        return n.Conv(*weight_and_bias(layer, k, name, norm), **form)

    def _other(self, step: Operation) -> str:
        inputs = tuple(self.values[i] for i in step.inputs)
        if step.kind == "norm":
            scale, shift = affine_of(step.module)
            return self.add(n.Affine(scale, shift), inputs, step.name)
        if step.kind in POOLS:
            pool = _pool(POOLS[step.kind], step.options, step.shape[0])
            return self.add(pool, inputs, step.name)
        if step.kind not in PLAIN:
            raise UserError(f"{step.name} has no integer form")
        return self.add(PLAIN[step.kind](step.options), inputs, step.name)

    def _route(self, features: str) -> None:
        scores = self.add(controller_of(self.model), (features,), "scores")
        self.graph.routing = "routing"
        self.graph.choices = self.model.controller.shape
        self.graph.nodes.append(n.Node(n.Choose(), (scores,), self.graph.routing))


def weight_and_bias(
    layer: QuantLayer, k: int, name: str, norm: Operation | None
) -> tuple[n.Weight, np.ndarray]:
    """Those of a layer with the norm behind it, at its k-th precision; the bias is float64 [O]."""
    weight, bias = weight_of(layer, k, name), _bias(layer)
    gain = np.ones(len(bias))
    if layer.affine is not None:
        gain = _array(layer.affine.gains(layer.quantized_weights()))[k]
        bias = bias + _array(layer.affine.shift)[k]
    gain, bias = _with_norm(gain, bias, norm)
    return scaled(weight, gain), bias


def norms_of_layers(steps: Operations) -> dict[int, int]:
    """Layers whose output a norm alone reads: the layer's index → the norm's."""
    found = {}
    for index, step in enumerate(steps.steps):
        if step.kind == "norm":
            source = step.inputs[0]
            if steps.steps[source].kind == "layer" and len(steps.readers(source)) == 1:
                found[source] = index
    return found


def _bias(layer: nn.Module) -> np.ndarray:
    return np.zeros(len(layer.weight)) if layer.bias is None else _array(layer.bias)


def affine_of(norm: _BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """What a norm multiplies by and adds, in evaluation."""
    if norm.running_mean is None:
        raise UserError("a batch norm without running statistics has no integer form")
    scale = 1 / np.sqrt(_array(norm.running_var) + norm.eps)
    shift = 0.0
    if norm.weight is not None:
        scale, shift = scale * _array(norm.weight), _array(norm.bias)
    return scale, shift - _array(norm.running_mean) * scale


def _with_norm(
    gain: np.ndarray, bias: np.ndarray, norm: Operation | None
) -> tuple[np.ndarray, np.ndarray]:
    """The gain and the bias of a layer with its norm."""
    if norm is None:
        return gain, bias
    scale, shift = affine_of(norm.module)
    return gain * scale, bias * scale + shift


def _form(layer: nn.Module, name: str, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Strides, pads, dilations and groups."""
    if isinstance(layer, nn.Linear):
        if len(input_shape) != 1:
            raise UserError(f"layer {name!r} reads tokens, which has no integer form")
        return {}
    own = layer if isinstance(layer, QuantConv2d) else QuantConv2d.from_float(layer, (8,))
    geometry: ConvGeometry = own.geometry
    if geometry.repeated:
        raise UserError(f"layer {name!r} repeats its margins, which has no integer form")
    vertical, horizontal = geometry.padding
    pads = (vertical, horizontal, vertical, horizontal)
    if geometry.same:
        x = torch.empty(1, *input_shape, device="meta")
        left, right, top, bottom = geometry.margins(x, layer.weight)
        pads = (top, left, bottom, right)
    form = {"strides": geometry.stride, "dilations": geometry.dilation}
    return {**form, "pads": pads, "groups": geometry.groups}
