"""A network as a small graph of operations: what exists, in which order, and what reads what.

Forward hooks see modules alone. Additions, pooling by ``mean`` and concatenations are function
calls, which ``torch.fx`` sees; it passes symbols through the network's own code, so that a path
that depends on values, which a graph cannot hold, is noticed.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dqnet.errors import UserError
from dqnet.layers import QuantLayer
from dqnet.layers.channel_clamp import ChannelClamp
from dqnet.layers.global_batch_norm import GlobalBatchNorm
from dqnet.norm_pairs import BATCH_NORMS
from dqnet.trace import LAYERS, evaluating

#: modules that are one operation whatever is inside
WHOLE = (*LAYERS, *BATCH_NORMS, GlobalBatchNorm, ChannelClamp)
#: do nothing in evaluation
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(eq=False)
class Operation:
    """One step of a network; its output is the value of its index in :class:`Operations`.

    Attributes:
        kind: ``image``, ``layer``, ``norm``, ``clip``, ``add``, ``concat``, ``max_pool``,
            ``average_pool``, ``mean`` (over both image axes), ``flatten``, ``slice``, ``pad``; or
            ``other``, which no form of the graph computes.
        inputs: indices of the operations that it reads.
        name: of the module that it is, or of the function and the module that calls it.
        module: of a layer or a norm.
        options: the rest of its arguments.
        shape: of its output, for one image.
        result_of: names of the modules that return its output and run once, the innermost first.
    """

    kind: str
    inputs: tuple[int, ...]
    name: str
    module: nn.Module | None = None
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    result_of: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Operations:
    """The operations of a network in order; the last one returns its result."""

    steps: list[Operation] = field(default_factory=list)

    def readers(self, index: int) -> list[Operation]:
        return [step for step in self.steps if index in step.inputs]


@torch.no_grad()
def operations(network: nn.Module, image_shape: tuple[int, ...]) -> Operations:
    """The operations of a network in evaluation; it is left as it was.

    Args:
        network: a float model, or a converted backbone whose layers run in full precision
            meanwhile.
        image_shape: ``(C, H, W)``.

    Raises:
        UserError: if it has no such graph; it names the module whose code prevents it.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    tracer = _Tracer()
    with evaluating(network):
        try:
            graph = tracer.trace(network)
        except Exception as error:  # whatever the network's code makes of a symbol
            line = str(error).partition("\n")[0]
            where = tracer.failed or type(network).__name__
            raise UserError(
                f"the network has no fixed graph: module {where!r} ({tracer.kind}) cannot be "
                f"traced: {line}"
            ) from error
        module = fx.GraphModule(network, graph)
        ShapeProp(module).propagate(image)
    return _Reader(network, tracer).read(graph)


class _Tracer(fx.Tracer):
    """Remembers which modules return which symbol, and where tracing failed."""

    def __init__(self) -> None:
        super().__init__()
        self.result_of: dict[fx.Node, list[str]] = {}
        self.calls: Counter[str] = Counter()
        self.failed = ""
        self.kind = "the model itself"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WHOLE) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self.failed:
                self.failed, self.kind = name, type(m).__name__
            raise
        self.calls[name] += 1
        if isinstance(output, fx.Proxy):
            self.result_of.setdefault(output.node, []).append(name)
        return output


class _Reader:
    """Operations of the nodes of a graph of ``torch.fx``."""

    def __init__(self, network: nn.Module, tracer: _Tracer) -> None:
        self.network = network
        self.tracer = tracer
        self.found = Operations()
        self.index: dict[fx.Node, int] = {}

    def read(self, graph: fx.Graph) -> Operations:
        for node in graph.nodes:
            if node.op == "output":
                break
            self.index[node] = self._step(node)
            once = [n for n in self.tracer.result_of.get(node, []) if self.tracer.calls[n] == 1]
            step = self.found.steps[self.index[node]]
            step.result_of += [name for name in once if name not in step.result_of]
        result = node.args[0]
        if not isinstance(result, fx.Node) or self.index[result] != len(self.found.steps) - 1:
            raise UserError("the network returns something else than the output of its last step")
        return self.found

    def _step(self, node: fx.Node) -> int:
        if node.op == "placeholder":
            return self._add("image", node, node.name)
        if node.op == "call_module":
            return self._module(node, self.network.get_submodule(node.target))
        if node.op in ("call_function", "call_method"):
            return self._function(node)
        return self._add("other", node, f"{node.target}, a tensor of its own,")

    def _add(self, kind: str, node: fx.Node, name: str, /, **more: Any) -> int:
        inputs = tuple(self.index[n] for n in node.all_input_nodes) if kind != "image" else ()
        return self._append(kind, inputs, node, name, **more)

    def _append(
        self, kind: str, inputs: tuple[int, ...], node: fx.Node, name: str, /,
        module: nn.Module | None = None, **options: Any,
    ) -> int:  # fmt: skip
        meta = node.meta.get("tensor_meta")
        shape = tuple(meta.shape[1:]) if hasattr(meta, "shape") else ()
        self.found.steps.append(Operation(kind, inputs, name, module, options, shape))
        return len(self.found.steps) - 1

    def _module(self, node: fx.Node, module: nn.Module) -> int:
        name = node.target
        if isinstance(module, NOTHING):
            return self.index[node.args[0]]
        if isinstance(module, BatchNormAct2d | GlobalBatchNorm):
            norm = self._add("norm", node, name, module=module)
            return self._activation(node, norm, f"{name}.act", module.act)
        if isinstance(module, BATCH_NORMS):
            return self._add("norm", node, name, module=module)
        if isinstance(module, QuantLayer | nn.Conv2d | nn.Linear):
            return self._add("layer", node, name, module=module)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kind = "max_pool" if isinstance(module, nn.MaxPool2d) else "average_pool"
            own = {key: vars(module)[key] for key in _POOL if key in vars(module)}
            return self._pool(kind, node, name, **own)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self._adaptive(node, name, module.output_size)
        if isinstance(module, nn.Flatten):
            return self._flatten(node, name, module.start_dim, module.end_dim)
        return self._activation(node, self.index[node.args[0]], name, module)

    def _activation(self, node: fx.Node, read: int, name: str, module: nn.Module) -> int:
        if isinstance(module, NOTHING):
            return read
        limits = _limits(module)
        if limits is None:
            name = f"{type(module).__name__} {name!r}"
            return self._append("other", (read,), node, name)
        return self._append("clip", (read,), node, name, low=limits[0], high=limits[1])

    def _function(self, node: fx.Node) -> int:
        function = node.target
        called = function if isinstance(function, str) else function.__name__
        where = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        name = f"{called} in {where[-1] if where else 'the model'}"
        arguments = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
        if function in (operator.add, operator.iadd, torch.add) or called in ("add", "add_"):
            both = len(node.all_input_nodes) == 2 and len(node.args) == 2 and not node.kwargs
            return self._add("add" if both else "other", node, name)
        if called in ("cat", "concat") and arguments.get("dim", 0) in (1, -3):
            return self._add("concat", node, name)
        if called in _CLIPS:
            return self._add("clip", node, name, low=_CLIPS[called][0], high=_CLIPS[called][1])
        if called == "mean" and _image_axes(arguments.get("dim")):
            return self._add("mean", node, name, keep=bool(arguments.get("keepdim", False)))
        if called == "flatten":
            ends = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            return self._flatten(node, name, ends.get("start_dim", 0), ends.get("end_dim", -1))
        if function is F.adaptive_avg_pool2d:
            return self._adaptive(node, name, node.args[1])
        if function is operator.getitem and _is_slice(node.args[1]) and self._is_map(node):
            return self._add("slice", node, name, slices=node.args[1])
        if function is F.pad and _is_zero_pad(node):
            return self._add("pad", node, name, margins=tuple(node.args[1]))
        if function in (F.dropout, F.dropout2d) and not node.kwargs.get("training", False):
            return self.index[node.args[0]]
        return self._add("other", node, name)

    def _is_map(self, node: fx.Node) -> bool:
        """Whether what it reads is a feature map."""
        return len(self.found.steps[self.index[node.args[0]]].shape) == 3

    def _pool(
        self, kind: str, node: fx.Node, name: str, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any = 1, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None, return_indices: bool = False,
    ) -> int:  # fmt: skip
        padded = kind == "average_pool" and _pair(padding) != (0, 0) and not count_include_pad
        if ceil_mode or divisor_override or return_indices or padded or _pair(dilation) != (1, 1):
            return self._add("other", node, f"a pooling with unusual options, {name!r},")
        stride = kernel_size if stride is None else stride
        shape = {"kernel": _pair(kernel_size), "stride": _pair(stride), "pads": _pair(padding)}
        return self._add(kind, node, name, **shape)

    def _adaptive(self, node: fx.Node, name: str, size: Any) -> int:
        if _pair(size) != (1, 1):
            return self._add("other", node, f"adaptive pooling to {size}, {name!r},")
        return self._add("mean", node, name, keep=True)

    def _flatten(self, node: fx.Node, name: str, start: int, end: int) -> int:
        rank = len(self.found.steps[self.index[node.args[0]]].shape) + 1
        if start != 1 or end not in (-1, rank - 1):
            return self._add("other", node, name)
        return self._add("flatten", node, name)


_POOL = (
    "kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad",
    "divisor_override", "return_indices",
)  # fmt: skip
#: functions that clip, and between what
_CLIPS = {"relu": (0.0, math.inf), "relu_": (0.0, math.inf), "relu6": (0.0, 6.0)}


def _limits(module: nn.Module) -> tuple[Any, Any] | None:
    """Between what a module clips; ``None`` for another activation."""
    if isinstance(module, nn.ReLU):
        return 0.0, math.inf
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val, module.max_val
    if isinstance(module, ChannelClamp):
        return module.low, module.high
    return None


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _image_axes(dim: Any) -> bool:
    return isinstance(dim, tuple | list) and sorted(d % 4 for d in dim) == [2, 3]


def _is_slice(index: Any) -> bool:
    """Whether an index takes parts of the channels, of the image axes, or of both."""
    if not isinstance(index, tuple) or len(index) not in (2, 4):
        return False
    return all(isinstance(part, slice) for part in index) and index[0] == slice(None)


def _is_zero_pad(node: fx.Node) -> bool:
    rest = {"mode": "constant", "value": None} | dict(node.kwargs)
    for key, value in zip(("mode", "value"), node.args[2:], strict=False):
        rest[key] = value
    return rest["mode"] == "constant" and not rest["value"]
