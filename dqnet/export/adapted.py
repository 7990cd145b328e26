"""What a file is changed to before an engine, or a processor, can run it rightly."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from dqnet.export.onnx_writer import import_onnx


def has_vnni() -> bool:
    """Whether products of 8 bits are summed in 32; False where it is not known."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return any("vnni" in flag for flag in flags)


def unsigned_weights(content: bytes) -> bytes:
    """A file of form integer whose int8 constants, weights and their zeros, are uint8.

    Its products are summed in 32 bits on every processor: ``session.x64quantprecision`` would do
    so, but not for convolutions of this kind.
    """
    onnx = import_onnx()
    model = onnx.load_from_string(content)
    for own in model.graph.initializer:
        if own.data_type == onnx.TensorProto.INT8:
            codes = onnx.numpy_helper.to_array(own).astype(np.int16) + 128
            own.CopyFrom(onnx.numpy_helper.from_array(codes.astype(np.uint8), own.name))
    return model.SerializeToString()


def required_inputs(content: bytes) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file whose inputs are all required, and the defaults that they had.

    OpenVINO takes an input that has a default for a constant.
    """
    onnx = import_onnx()
    model = onnx.load_from_string(content)
    inputs = {own.name for own in model.graph.input}
    optional = [own for own in model.graph.initializer if own.name in inputs]
    for own in optional:
        model.graph.initializer.remove(own)
    defaults = {own.name: onnx.numpy_helper.to_array(own) for own in optional}
    return model.SerializeToString(), defaults
