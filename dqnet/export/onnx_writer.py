"""An ONNX graph in the making; ``onnx`` is imported when something is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dqnet.errors import UserError
from dqnet.runtime.files import write_atomically

OPSET = 21
#: of the file format; what runtimes of that opset read
IR_VERSION = 10
#: operators of ONNX Runtime's own
MICROSOFT = "com.microsoft"
#: the entry of the metadata that says what the network is
ENTRY = "dqnet"


def import_onnx() -> ModuleType:
    """The package ``onnx``.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed: pip install dqnet[deploy]") from error
    return onnx


class Writer:
    """Nodes and constants; values are names.

    Args:
        outer: the graph around a branch, whose values the branch may read.
    """

    def __init__(self, outer: Writer | None = None) -> None:
        self.helper = import_onnx().helper
        self.outer = outer
        self.nodes: list[Any] = []
        self.constants: list[Any] = [] if outer is None else outer.constants
        self._taken: set[str] = set() if outer is None else outer._taken
        self._domains: set[str] = set() if outer is None else outer._domains

    def reserve(self, *names: str) -> None:
        """Keeps names that the caller gives out."""
        self._taken |= {*names}

    def constant(self, name: str, value: np.ndarray | float, dtype: Any = None) -> str:
        """A constant; a 0-dimensional one stays so."""
        name = self.free(name)
        array = np.array(value, dtype=dtype)
        self.constants.append(import_onnx().numpy_helper.from_array(array, name))
        return name

    def constant_of_4_bits(self, name: str, value: np.ndarray) -> str:
        """Integers from −8 to 7, two in a byte."""
        onnx = import_onnx()
        name = self.free(name)
        kind = onnx.TensorProto.INT4
        tensor = self.helper.make_tensor(name, kind, value.shape, value.flatten().tolist())
        self.constants.append(tensor)
        return name

    def constant_of_float8(self, name: str, value: np.ndarray, small_float: str) -> str:
        """Numbers of ``e4m3`` or ``e5m2``."""
        types = import_onnx().TensorProto
        kind = {"e4m3": types.FLOAT8E4M3FN, "e5m2": types.FLOAT8E5M2}[small_float]
        name = self.free(name)
        tensor = self.helper.make_tensor(name, kind, value.shape, value.flatten().tolist())
        self.constants.append(tensor)
        return name

    def default(self, name: str, value: np.ndarray) -> None:
        """What an input is where the caller gives nothing."""
        self.constants.append(import_onnx().numpy_helper.from_array(value, name))

    def type_of(self, dtype: Any) -> int:
        """ONNX's number of a NumPy type."""
        return self.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def add(
        self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        """Appends a node with one output and returns its name.

        Args:
            output: a name, made different if it is taken; one that was reserved stays.
        """
        self.nodes.append(
            self.helper.make_node(operator, list(inputs), [output], output, domain=domain,
                                  **attributes)
        )  # fmt: skip
        self._domains.add(domain)
        return output

    def split(self, value: str, outputs: Sequence[str]) -> None:
        """Appends a node that cuts the first axis into its elements."""
        outputs = list(outputs)
        self.nodes.append(
            self.helper.make_node("Split", [value], outputs, f"{value}.split", axis=0,
                                  num_outputs=len(outputs))
        )  # fmt: skip

    def free(self, name: str) -> str:
        """A name like that one which is not taken, and now is."""
        own, count = name, 1
        while own in self._taken:
            count += 1
            own = f"{name}.{count}"
        self._taken.add(own)
        return own

    def new(
        self, operator: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any
    ) -> str:
        """:meth:`add` with a name of its own for the output."""
        return self.add(operator, inputs, self.free(name), domain, **attributes)

    def tensor(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
        """The type of a value that a graph reads or returns."""
        return self.helper.make_tensor_value_info(name, self.type_of(dtype), list(shape))

    def branch(self, name: str, *results: Any) -> Any:
        """The nodes as a branch of an ``If``; ``results``: from :meth:`tensor`."""
        return self.helper.make_graph(self.nodes, name, [], results)

    def choose(self, flag: str, outputs: Sequence[str], then: Any, otherwise: Any) -> None:
        """Appends an ``If`` of two branches from :meth:`branch`."""
        branches = {"then_branch": then, "else_branch": otherwise}
        self.nodes.append(self.helper.make_node("If", [flag], list(outputs), **branches))

    def include(self, model: Any) -> None:
        """Appends the nodes of another network, whose names are different ones."""
        self.nodes += model.graph.node
        self.constants += model.graph.initializer
        self._domains |= {own.domain for own in model.opset_import}

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """The network, without metadata."""
        graph = self.helper.make_graph(self.nodes, "dqnet", inputs, outputs, self.constants)
        opsets = [self.helper.make_opsetid("", OPSET)]
        opsets += [self.helper.make_opsetid(own, 1) for own in sorted(self._domains - {""})]
        return self.helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="dqnet"
        )


def save_model(model: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Checks a network and writes it, whole or not at all.

    Raises:
        UserError: if the path cannot be written.
    """
    onnx = import_onnx()
    onnx.helper.set_model_props(model, {ENTRY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    write_atomically(path, lambda part: part.write_bytes(content))
