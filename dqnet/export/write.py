"""Writes a converted network as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dqnet.cascade import Cascade
from dqnet.errors import UserError, unknown_name
from dqnet.export import nodes as n
from dqnet.export.integer import to_integer
from dqnet.export.lower import RESERVED, lower
from dqnet.export.onnx_cascade import NetworkFile, cascade_file, check_cascade
from dqnet.export.onnx_exact import ExactForm
from dqnet.export.onnx_integer import IntegerForm
from dqnet.export.onnx_routing import Form, routing_inputs
from dqnet.export.onnx_writer import Writer, save_model
from dqnet.export.qonnx import QonnxForm
from dqnet.network import QuantizedModel

FORMS = ("exact", "integer", "qonnx")
#: of the metadata
VERSION = 1


@dataclass(frozen=True)
class Preprocessing:
    """What images are before the network reads them: (pixel / 255 − mean) / std of each channel.

    Attributes:
        size: pixels of each side.
        mean, std: of each channel.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    form: str = "exact",
    *,
    packed: bool = False,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> n.Graph | None:
    """Writes the integer network of a converted model, or of a cascade of them.

    A static network takes batches of any size; a dynamic one and a cascade take an image at a time,
    and :func:`dqnet.load_exported` shares out batches. The file's input is ``images``, float32
    ``[N, C, H, W]``, its outputs are ``logits`` ``[N, classes]`` and, of a dynamic network,
    ``routing`` ``[1, L, K]``, of a cascade ``passes`` and ``bit_flops``, ``[1]``. What it is stands
    in its metadata, as JSON under ``dqnet``.

    Args:
        model: from :func:`dqnet.quantize`, calibrated or trained, or a :class:`dqnet.Cascade`; it
            is exported as it evaluates.
        path: the file.
        form: ``exact``: layers compute with integers, everything between them in float32, as in the
            simulated network; for OpenVINO, or any runtime of standard ONNX. ``integer``: every
            value between image and logits is an 8-bit code; for ONNX Runtime; it needs a network
            that was converted with ``residual``. ``qonnx``: as simulated, in the dialect that tools
            for FPGAs read, of a static network and a batch of 1.
        packed: store weights of up to 4 bits in 4 bits (``exact`` alone).
        class_names, preprocessing: for whoever runs the file, in its metadata.

    Returns:
        What was written, as :func:`dqnet.export.interpret.interpret` runs it; ``None`` of a
        cascade, which is several such graphs.

    Raises:
        UserError: for a network that has no such form (what prevents it is named), an unknown form,
            a path that is a folder or cannot be written, or if ``onnx`` is not installed.
    """
    path = Path(path)
    if form not in FORMS:
        raise unknown_name("form", form, FORMS)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it, e.g. {path / 'model.onnx'}")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is not a folder")
    described = {
        "class_names": None if class_names is None else list(class_names),
        "preprocessing": None if preprocessing is None else asdict(preprocessing),
    }
    if isinstance(model, Cascade):
        check_cascade(form)
        written = cascade_file(model, lambda network: network_file(network, form, packed))
    else:
        written = network_file(model, form, packed)
    save_model(written.model, path, written.metadata | described)
    return written.graph


def network_file(model: nn.Module, form: str, packed: bool = False) -> NetworkFile:
    """A network in ONNX; arguments and errors as of :func:`export_onnx`."""
    own = form_of(model, form, packed)
    return NetworkFile(_model(own), metadata_of(model, own.graph, form), own.graph)


def check_exportable(model: nn.Module, form: str) -> None:
    """Raises UserError for a network, or a pass of a cascade, that has no such form."""
    if isinstance(model, Cascade):
        check_cascade(form)
        for network in {model.first, model.second_network}:
            check_exportable(network, form)
    else:
        form_of(model, form)


def form_of(model: nn.Module, form: str, packed: bool = False) -> Form:
    """A network's graph with what writes it; arguments and errors as of :func:`export_onnx`."""
    writer = Writer()
    writer.reserve(*RESERVED)
    graph = lower(model)
    if form == "integer":
        return IntegerForm(to_integer(graph), writer)
    if form == "qonnx":
        return QonnxForm(graph, writer)
    return ExactForm(graph, writer, packed=packed)


def _model(form: Form) -> Any:
    writer, graph = form.writer, form.graph
    writer.reserve(*(node.output for node in graph.all_nodes()))
    # Tools for FPGAs want every shape to be known.
    images = 1 if graph.routing is not None or isinstance(form, QonnxForm) else "N"
    inputs = [writer.tensor(graph.image, np.float32, (images, *graph.image_shape))]
    outputs = [writer.tensor(graph.logits, np.float32, (images, "classes"))]
    if graph.routing is not None:
        inputs += routing_inputs(writer, graph)
        outputs.append(writer.tensor(graph.routing, np.float32, (1, *graph.choices)))
    for node in graph.nodes:
        form.write(node)
    return writer.model(inputs, outputs)


def metadata_of(model: QuantizedModel, graph: n.Graph, form: str) -> dict[str, Any]:
    """What a file says of a network."""
    return {
        "version": VERSION,
        "form": form,
        "image_shape": list(graph.image_shape),
        "precisions": list(model.widths),
        "layers": {layer.name: list(layer.widths) for layer in model.layers},
        "routed": [layer.name for layer in model.routed_layers],
        "split_point": model.split_point,
        "residual": bool(model.value_quantizers),
        "largest_weight_code": max(int(abs(w.codes).max()) for w in graph.weights()),
        "grids": {name: asdict(grid) for name, grid in graph.grids.items()},
    }
