"""Runs an exported network by ONNX Runtime, OpenVINO or QONNX's executor."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dqnet.cascade import CascadeOutput
from dqnet.errors import UserError, unknown_name
from dqnet.export.adapted import has_vnni, required_inputs, unsigned_weights
from dqnet.export.integer import SAFE_CODE
from dqnet.export.onnx_routing import FORCED, LAMBDA
from dqnet.export.onnx_writer import ENTRY, import_onnx
from dqnet.network import Output

RUNTIMES = ("auto", "onnxruntime", "openvino", "qonnx")


class Session(Protocol):
    """One engine with one file loaded; several may run at a time, one call each."""

    def __call__(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The file's outputs, logits first."""
        ...


class ExportedNetwork:
    """What :func:`load_exported` returns.

    Attributes:
        metadata: what the file says of itself: form, precisions, layers, class names ...
        runtime: which engine runs it.
    """

    def __init__(self, metadata: dict[str, Any], runtime: str, sessions: list[Session]) -> None:
        self.metadata = metadata
        self.runtime = runtime
        self._sessions = sessions
        self._shape = tuple(metadata["image_shape"])
        self._choices = (len(metadata["routed"]), len(metadata["precisions"]))

    @property
    def dynamic(self) -> bool:
        return bool(self.metadata["routed"])

    @property
    def is_cascade(self) -> bool:
        return "cascade" in self.metadata

    def __call__(
        self,
        images: Tensor | np.ndarray,
        routing: Tensor | np.ndarray | None = None,
        budget_lambda: float = 0.0,
    ) -> Output | CascadeOutput:
        """Classifies images.

        Args:
            images: float32 ``[N, C, H, W]``, preprocessed as in training.
            routing: one-hot ``[N, L, K]`` in the controller's place.
            budget_lambda: of a dynamic network, a price of bits above that of its export.

        Returns:
            Logits ``[N, classes]`` and the routing ``[N, L, K]``; in a static network L is 0. Of a
            cascade log-probabilities, how often each image ran, and its Bit-FLOPs.

        Raises:
            UserError: for images of another size or type, or a routing of another shape.
        """
        x = self._checked(images)
        if not self.dynamic and (routing is not None or budget_lambda):
            kind = "a cascade" if self.is_cascade else "static"
            raise UserError(f"the network is {kind}: it takes neither routing nor budget_lambda")
        if self.is_cascade:
            parts = zip(*self._shared_out(_one_by_one(x)), strict=True)
            return CascadeOutput(*(torch.from_numpy(np.concatenate(part)) for part in parts))
        if not self.dynamic:
            (logits,) = self._sessions[0]({"images": x})
            return Output(torch.from_numpy(logits), torch.zeros(len(x), *self._choices))
        feeds = _one_by_one(x)
        if budget_lambda:
            for own in feeds:
                own[LAMBDA] = np.array(budget_lambda, np.float32)
        if routing is not None:
            given = np.asarray(routing, np.float32)
            if given.shape != (len(x), *self._choices):
                shape = [len(x), *self._choices]
                raise UserError(f"the routing has shape {list(given.shape)}, it must be {shape}")
            for own, row in zip(feeds, given, strict=True):
                own[FORCED] = row
        logits, used = zip(*self._shared_out(feeds), strict=True)
        return Output(*(torch.from_numpy(np.concatenate(part)) for part in (logits, used)))

    def _shared_out(self, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
        """Each image by whichever session is free."""
        count = len(self._sessions)
        if count == 1 or len(feeds) == 1:
            return [self._sessions[0](own) for own in feeds]
        parts = [range(i, len(feeds), count) for i in range(count)]
        results: list[list[np.ndarray]] = [[]] * len(feeds)

        def run(session: Session, part: range) -> None:
            for i in part:
                results[i] = session(feeds[i])

        with ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(run, *own) for own in zip(self._sessions, parts, strict=True)]:
                done.result()
        return results

    def _checked(self, images: Tensor | np.ndarray) -> np.ndarray:
        if isinstance(images, Tensor):
            images = images.detach().cpu().numpy()
        if not isinstance(images, np.ndarray) or images.dtype != np.float32:
            kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise UserError(f"images are {kind}; give float32 [N, C, H, W], preprocessed")
        if images.ndim != 4 or images.shape[1:] != self._shape or not len(images):
            own = ", ".join(map(str, self._shape))
            raise UserError(f"images have shape {list(images.shape)}; the network takes [N, {own}]")
        return np.ascontiguousarray(images)


def _one_by_one(images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"images": images[i : i + 1]} for i in range(len(images))]


def load_exported(
    path: str | Path, runtime: str = "auto", threads: int | None = None
) -> ExportedNetwork:
    """Loads a file that :func:`dqnet.export_onnx` wrote.

    Args:
        path: the file.
        runtime: ``onnxruntime`` or ``openvino``; ``auto``: the one that the file's form is fast in,
            if it is installed: OpenVINO for ``exact`` without ``residual``, else ONNX Runtime.
            ``qonnx``, the executor of that package, is for files of its form, and slow.
        threads: how many compute; ``None``: one for each processor. A dynamic network, or a
            cascade, has as many sessions of one thread each, which share the images of a batch.

    Raises:
        UserError: if the file is missing, damaged or another one, or the runtime is unknown, not
            installed, or does not run this form.
    """
    path = Path(path)
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    count = os.cpu_count() or 1 if threads is None else threads
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"threads {threads!r} must be at least 1, an integer")
    content, metadata = _read(path)
    if runtime == "auto":
        exact = metadata["form"] == "exact" and not metadata["residual"]
        fast = "openvino" if exact else "onnxruntime"
        runtime = fast if find_spec(fast) is not None else "onnxruntime"
        runtime = "qonnx" if metadata["form"] == "qonnx" else runtime
    if (runtime == "qonnx") != (metadata["form"] == "qonnx"):
        raise UserError(
            f"{path} is of form {metadata['form']}, which runtime={runtime} does not run: "
            "runtime=qonnx is for form=qonnx, and no other is"
        )
    if runtime == "openvino" and metadata["form"] == "integer":
        raise UserError(
            f"{path} is of form integer, whose operators are ONNX Runtime's: use "
            "runtime=onnxruntime, or export with form=exact"
        )
    start = {"openvino": _openvino, "onnxruntime": _onnxruntime, "qonnx": _qonnx}[runtime]
    one_by_one = metadata["routed"] or "cascade" in metadata
    sessions, each = (count, 1) if one_by_one else (1, count)
    loaded = [start(content, metadata, each) for _ in range(sessions)]
    return ExportedNetwork(metadata, runtime, loaded)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes and its metadata."""
    onnx = import_onnx()
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        model = onnx.load_from_string(content)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own
        raise UserError(f"{path} is damaged, or not an ONNX file") from error
    if ENTRY not in properties:
        raise UserError(f"{path} is not a network that dqnet.export_onnx wrote")
    return content, json.loads(properties[ENTRY])


def _onnxruntime(content: bytes, metadata: dict[str, Any], threads: int) -> Session:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install dqnet[deploy]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if metadata["form"] == "exact":
        # It would make integer convolutions whose bias is rounded to their own scale.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    elif metadata["largest_weight_code"] > SAFE_CODE and not has_vnni():
        content = unsigned_weights(content)
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def _openvino(content: bytes, metadata: dict[str, Any], threads: int) -> Session:
    try:
        import openvino
    except ImportError as error:
        raise UserError("openvino is not installed: pip install dqnet[openvino]") from error
    # Its first use of NumPy deadlocks where two threads make it at the same time.
    openvino.Tensor(np.zeros(1, np.float32))
    content, defaults = required_inputs(content)
    core = openvino.Core()
    model = core.read_model(content)
    options = {
        # On some processors it would compute in bfloat16, without a word.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    saturates = metadata["largest_weight_code"] > SAFE_CODE and not has_vnni()
    if saturates or metadata["residual"]:
        # Computes in float32. Its integer transformations are wrong where a code is requantized for
        # a convolution and also added to what that convolution's output was quantized to.
        options["LP_TRANSFORMS_MODE"] = "NO"
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = request.infer(defaults | feeds)
        return [np.array(results[i]) for i in range(len(results))]

    return run


def _qonnx(content: bytes, metadata: dict[str, Any], threads: int) -> Session:
    try:
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes
    except ImportError as error:
        raise UserError("qonnx is not installed: pip install dqnet[qonnx]") from error
    onnx = import_onnx()

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        model = onnx.load_from_string(content)
        images, logits = (
            own[0].type.tensor_type for own in (model.graph.input, model.graph.output)
        )
        images.shape.dim[0].dim_value = len(feeds["images"])
        logits.ClearField("shape")
        whole = ModelWrapper(model).transform(InferShapes())
        return [execute_onnx(whole, feeds)["logits"]]

    return run
