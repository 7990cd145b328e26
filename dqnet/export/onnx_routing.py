"""How an exported network chooses: the controller, the routing, and a layer's precisions.

A dynamic network takes one image at a time, so a layer is a chain of ``If`` of which one branch is
run. Inputs with a default are optional: ``forced_routing`` [L, K], all zeros unless a routing is
given, and ``budget_lambda``, a further price of bits, 0 unless given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dqnet.export import nodes as n
from dqnet.export.onnx_writer import Writer

FORCED, LAMBDA = "forced_routing", "budget_lambda"


class Form(Protocol):
    """What writes the nodes of a graph in one of the forms."""

    graph: n.Graph
    writer: Writer

    def write(self, node: n.Node) -> None: ...


def write_controller(
    writer: Writer, own: n.Controller, features: str, output: str, image_axes: tuple[int, int]
) -> None:
    """float32 features of one image, with these image axes, to scores ``[L, K]``."""
    axes = writer.constant("controller.axes", image_axes, np.int64)
    x = writer.new("ReduceMean", [features, axes], "controller.mean", keepdims=0)
    if own.spread:
        squares = writer.new("Mul", [features, features], "controller.squares")
        squares = writer.new("ReduceMean", [squares, axes], "controller.mean_square", keepdims=0)
        square = writer.new("Mul", [x, x], "controller.square")
        variance = writer.new("Sub", [squares, square], "controller.variance")
        zero = writer.constant("controller.zero", 0.0, np.float32)
        variance = writer.new("Max", [variance, zero], "controller.positive")
        least = writer.constant("controller.least", 1e-6, np.float32)
        variance = writer.new("Add", [variance, least], "controller.shifted")
        spread = writer.new("Sqrt", [variance], "controller.spread")
        x = writer.new("Concat", [x, spread], "controller.features", axis=1)
    # The norm in front of the first layer is part of it.
    (weight, bias), (weight2, bias2) = own.first, own.second
    bias = bias + weight @ own.shift
    x = _gemm(writer, x, weight * own.scale, bias, "controller.fc1")
    x = writer.new("Relu", [x], "controller.act") if own.relu else x
    x = _gemm(writer, x, weight2, bias2 + own.offset.reshape(-1), "controller.fc2")
    shape = writer.constant("controller.shape", own.offset.shape, np.int64)
    scores = writer.new("Reshape", [x, shape], "controller.scores")
    prices = writer.constant("controller.prices", own.prices, np.float32)
    paid = writer.new("Mul", [LAMBDA, prices], "controller.paid")
    writer.add("Sub", [scores, paid], output)


def _gemm(writer: Writer, x: str, weight: np.ndarray, bias: np.ndarray, name: str) -> str:
    parts = [writer.constant(f"{name}.weight", weight, np.float32)]
    parts.append(writer.constant(f"{name}.bias", bias, np.float32))
    return writer.new("Gemm", [x, *parts], name, transB=1)


def write_routing(writer: Writer, graph: n.Graph, node: n.Node) -> None:
    """Scores ``[L, K]`` to the routing ``[1, L, K]``, and one flag for each layer's precision."""
    layers, widths = graph.choices
    chosen = writer.new("ArgMax", [*node.inputs], "routing.chosen", axis=1, keepdims=0)
    depth = writer.constant("routing.depth", [widths], np.int64)
    ends = writer.constant("routing.ends", [0, 1], np.float32)
    chosen = writer.new("OneHot", [chosen, depth, ends], "routing.one_hot", axis=-1)
    axes = writer.constant("routing.both", [0, 1], np.int64)
    given = writer.new("ReduceMax", [FORCED, axes], "routing.given", keepdims=0)
    given = writer.new("Cast", [given], "routing.is_given", to=writer.type_of(np.bool_))
    used = writer.new("Where", [given, FORCED, chosen], "routing.used")
    first = writer.constant("routing.first", [0], np.int64)
    writer.add("Unsqueeze", [used, first], node.output)
    flags = writer.new("Cast", [used], "routing.flags", to=writer.type_of(np.bool_))
    shape = writer.constant("routing.size", [layers * widths], np.int64)
    flags = writer.new("Reshape", [flags, shape], "routing.flat")
    writer.split(flags, [_flag(i, k) for i in range(layers) for k in range(widths)])


def _flag(column: int, k: int) -> str:
    return f"routing.{column}.{k}"


def write_routed(writer: Writer, graph: n.Graph, node: n.Node, form: Callable[[], Form]) -> None:
    """A layer as a chain of ``If``: precision k if its flag is set, else the next one.

    Args:
        form: makes what writes a branch, whose writer is one within ``writer``.
    """
    routed = node.operation
    output = _chain(list(routed.choices.items()), graph, node, form, routed.column)
    writer.nodes += output


def _chain(
    choices: list[tuple[int, tuple[n.Node, ...]]], graph: n.Graph, node: n.Node,
    form: Callable[[], Form], column: int,
) -> list[Any]:  # fmt: skip
    (k, nodes), rest = choices[0], choices[1:]
    own = form()
    for inner in nodes:
        own.write(inner)
    if not rest:
        return own.writer.nodes
    dtype = np.float32 if node.output not in graph.grids else np.uint8
    result = own.writer.tensor(node.output, dtype, ())
    result.type.tensor_type.ClearField("shape")
    other = form()
    other.writer.nodes = _chain(rest, graph, node, form, column)
    chain = form().writer
    chain.choose(
        _flag(column, k), [node.output],
        own.writer.branch(f"{node.output}.{k}", result),
        other.writer.branch(f"{node.output}.not_{k}", result),
    )  # fmt: skip
    return chain.nodes


def routing_inputs(writer: Writer, graph: n.Graph) -> list[Any]:
    """The optional inputs, with their defaults."""
    layers, widths = graph.choices
    writer.default(FORCED, np.zeros((layers, widths), np.float32))
    writer.default(LAMBDA, np.zeros((), np.float32))
    return [
        writer.tensor(FORCED, np.float32, (layers, widths)),
        writer.tensor(LAMBDA, np.float32, ()),
    ]
