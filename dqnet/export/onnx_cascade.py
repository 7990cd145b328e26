"""A cascade as one ONNX file: its passes are sub-graphs, the second within an ``If``.

A second pass by the same network reads the same constants, so that they are stored once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqnet.cascade import Cascade
from dqnet.costs.network import cost_table
from dqnet.costs.static import static_cost
from dqnet.errors import UserError
from dqnet.export import nodes as n
from dqnet.export.onnx_writer import Writer
from dqnet.network import QuantizedModel

IMAGES, OUTPUTS = "images", ("logits", "passes", "bit_flops")
TYPES = (np.float32, np.int64, np.float64)


@dataclass(frozen=True)
class NetworkFile:
    """A network in ONNX.

    Attributes:
        model: an ``onnx.ModelProto``.
        metadata: what the file is to say of itself.
        graph: as it was lowered; ``None``: several were.
    """

    model: Any
    metadata: dict[str, Any]
    graph: n.Graph | None


def check_cascade(form: str) -> None:
    """Raises UserError for a form that cascades do not have."""
    if form == "qonnx":
        raise UserError("a cascade has no form=qonnx, in which no image can be left out: use exact")


def cascade_file(cascade: Cascade, write: Callable[[QuantizedModel], NetworkFile]) -> NetworkFile:
    """A cascade, of networks or of cascades, for one image at a time.

    Args:
        cascade: as it evaluates.
        write: makes the file of one of its networks.
    """
    first = _answer(cascade.first, write)
    second = first if cascade.second is None else _answer(cascade.second, write)
    writer = Writer()
    _include(writer, first, "first/", "first/")
    log_p = _tempered(writer, cascade, "first/logits", 0)
    unsure = _unsure(writer, log_p, cascade.threshold.item())
    again, once = Writer(writer), Writer(writer)
    seen = _view(again, cascade.view)
    if cascade.second is None:
        _include(again, second, "second/", "first/", seen, with_constants=False)
    else:
        _include(again, second, "second/", "second/", seen)
    results = [
        _combined(again, cascade, log_p, _tempered(again, cascade, "second/logits", 1)),
        *(again.new("Add", [f"first/{own}", f"second/{own}"], f"{own}.sum") for own in OUTPUTS[1:]),
    ]
    kept = [
        once.new("Identity", [own], "once")
        for own in (log_p, *(f"first/{own}" for own in OUTPUTS[1:]))
    ]
    writer.choose(
        unsure, OUTPUTS,
        again.branch("again", *_typed(again, results)), once.branch("once", *_typed(once, kept)),
    )  # fmt: skip
    shape = first.metadata["image_shape"]
    inputs = [writer.tensor(IMAGES, np.float32, (1, *shape))]
    outputs = [writer.tensor(OUTPUTS[0], TYPES[0], (1, "classes"))]
    outputs += [writer.tensor(*own, (1,)) for own in zip(OUTPUTS[1:], TYPES[1:], strict=True)]
    return NetworkFile(writer.model(inputs, outputs), _metadata(cascade, first, second), None)


def _answer(
    network: QuantizedModel | Cascade, write: Callable[[QuantizedModel], NetworkFile]
) -> NetworkFile:
    """One pass, with the outputs of a cascade."""
    if isinstance(network, Cascade):
        return cascade_file(network, write)
    written = write(network)
    writer = Writer()
    _include(writer, written, "network/", "network/")
    writer.add("Identity", ["network/logits"], OUTPUTS[0])
    writer.add("Identity", [writer.constant("one", [1], np.int64)], OUTPUTS[1])
    cost = writer.constant("cost", [static_cost(network.layers)], np.float64)
    if network.routed_layers:
        table = cost_table(network).nan_to_num(posinf=0)[None].numpy()
        table = writer.constant("costs", table, np.float64)
        routing = writer.new("Cast", ["network/routing"], "routing", to=writer.type_of(np.float64))
        chosen = writer.new("Mul", [routing, table], "chosen")
        axes = writer.constant("layers", [1, 2], np.int64)
        routed = writer.new("ReduceSum", [chosen, axes], "routed", keepdims=0)
        cost = writer.new("Add", [cost, routed], "total")
    writer.add("Identity", [cost], OUTPUTS[2])
    return NetworkFile(writer.model([], []), written.metadata, written.graph)


def _include(
    writer: Writer, own: NetworkFile, prefix: str, constants: str, images: str = IMAGES,
    with_constants: bool = True,
) -> None:  # fmt: skip
    """Appends a network whose values get a prefix.

    Args:
        constants: the prefix of constants.
        images: what it reads.
        with_constants: whether they are to be stored as well.
    """
    model = type(own.model)()
    model.CopyFrom(own.model)
    stored = {constant.name for constant in model.graph.initializer}

    def renamed(name: str) -> str:
        if name in ("", IMAGES):
            return name and images
        return (constants if name in stored else prefix) + name

    _rename(model.graph, renamed)
    if not with_constants:
        del model.graph.initializer[:]
    writer.include(model)


def _rename(graph: Any, new: Callable[[str], str]) -> None:
    """Renames every value of a graph and of the graphs within it."""
    for own in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        own.name = new(own.name)
    for node in graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, new)


def _tempered(writer: Writer, cascade: Cascade, logits: str, k: int) -> str:
    temperature = writer.constant("temperature", cascade.temperatures[k].item(), np.float32)
    divided = writer.new("Div", [logits, temperature], "divided")
    return writer.new("LogSoftmax", [divided], "log_p", axis=1)


def _unsure(writer: Writer, log_p: str, threshold: float) -> str:
    p = writer.new("Exp", [log_p], "p")
    axes = writer.constant("axes", [0, 1], np.int64)
    confidence = writer.new("ReduceMax", [p, axes], "confidence", keepdims=0)
    threshold = writer.constant("threshold", threshold, np.float32)
    return writer.new("LessOrEqual", [confidence, threshold], "unsure")


def _view(writer: Writer, view: str | None) -> str:
    if view is None:
        return IMAGES
    last, axis = (writer.constant(*own, np.int64) for own in (("last", [-1]), ("axis", [3])))
    before_first = writer.constant("before_first", [np.iinfo(np.int64).min], np.int64)
    return writer.new("Slice", [IMAGES, last, before_first, axis, last], "mirrored")


def _combined(writer: Writer, cascade: Cascade, first: str, second: str) -> str:
    if cascade.combine == "replace":
        return second
    share = writer.constant("share", 1 - cascade.weight.item(), np.float32)
    difference = writer.new("Sub", [second, first], "difference")
    part = writer.new("Mul", [difference, share], "part")
    mean = writer.new("Add", [first, part], "mean")
    return writer.new("LogSoftmax", [mean], "answer", axis=1)


def _typed(writer: Writer, names: list[str]) -> list[Any]:
    typed = [writer.tensor(*own, ()) for own in zip(names, TYPES, strict=True)]
    for own in typed:
        own.type.tensor_type.ClearField("shape")
    return typed


def _metadata(cascade: Cascade, first: NetworkFile, second: NetworkFile) -> dict[str, Any]:
    passes = first.metadata, second.metadata
    common = {key: first.metadata[key] for key in ("version", "form", "image_shape")}
    return common | {
        "cascade": cascade.described(),
        "passes": list(passes[: 1 if cascade.second is None else 2]),
        "precisions": [],
        "routed": [],
        "residual": any(own["residual"] for own in passes),
        "largest_weight_code": max(own["largest_weight_code"] for own in passes),
    }
