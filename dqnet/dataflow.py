"""Which output goes where: one pass through a model, as a graph of calls.

Layers, batch norms and activation modules are one call each; of everything else each operation is
one. What does nothing in evaluation (dropout, identity) is not a call: its output is its input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dqnet.trace import LAYERS, PROBE_SEED, evaluating

#: layers whose forward pass is what their base class computes
PLAIN_LAYERS = (nn.Conv2d, Conv2dSame, nn.Linear)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
#: modules that are one call
WHOLE = (*LAYERS, _BatchNorm, *ACTIVATIONS)
#: two, so that an axis of one is not taken for that of the images
IMAGES = 2


@dataclass(frozen=True, eq=False)
class Call:
    """A module that ran, or an operation outside of such modules.

    Attributes:
        name: the module's, or the operation's (``aten.add``).
        module: ``None`` for an operation.
        inputs, outputs: the tensors, as :class:`Dataflow` numbers them.
        shape: of the first input.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shape: torch.Size


@dataclass(eq=False)
class Dataflow:
    """The calls of a pass, in order, and how they are connected.

    Attributes:
        calls: by module; operations are under ``None``.
        producers: tensor → the call that returned it.
        users: tensor → the calls that read it; the model's own result counts as one.
    """

    calls: dict[nn.Module | None, list[Call]] = field(default_factory=lambda: defaultdict(list))
    producers: dict[int, Call] = field(default_factory=dict)
    users: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def add(self, call: Call) -> None:
        """Appends a call."""
        self.calls[call.module].append(call)
        self.producers |= dict.fromkeys(call.outputs, call)
        for tensor in dict.fromkeys(call.inputs):
            self.users[tensor].append(call)


@torch.no_grad()
def dataflow(model: nn.Module, sample_input: Tensor) -> Dataflow:
    """Runs a model once on noise, in evaluation, and records its calls; it is left as it was.

    Args:
        model: any module that takes ``sample_input``.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used.
    """
    generator = torch.Generator().manual_seed(PROBE_SEED)
    images = torch.randn(IMAGES, *sample_input.shape[1:], generator=generator).to(sample_input)
    recorder = _Recorder()
    with evaluating(model), _hooks(model, recorder), recorder:
        result = model(images)
    recorder.add("the network's result", None, result, ())
    return recorder.flow


class _Recorder(TorchDispatchMode):
    """Adds operations to a graph, and what hooks tell it about modules.

    A tensor that is changed in place is another one afterwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flow = Dataflow()
        self.depth = 0  # of modules that are one call
        self._numbers: dict[int, int] = {}  # id → the tensor's latest number
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.depth:
            self.add(str(func.overloadpacket), None, (args, kwargs), output)
        return output

    def add(self, name: str, module: nn.Module | None, read: Any, written: Any) -> None:
        """Adds a call by the tensors it read and wrote, in any nesting."""
        sources = [x for x in tree_leaves(read) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(written) if isinstance(x, Tensor)]
        inputs = tuple(self._number(x) for x in sources)
        outputs = tuple(self._number(x, new=True) for x in results)
        shape = sources[0].shape if sources else torch.Size()
        self.flow.add(Call(name, module, inputs, outputs, shape))

    def _number(self, x: Tensor, new: bool = False) -> int:
        if new or id(x) not in self._numbers:
            self._alive.append(x)
            self._numbers[id(x)] = self._next
            self._next += 1
        return self._numbers[id(x)]


@contextmanager
def _hooks(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []

    def enter(module: nn.Module, args: Any) -> None:
        recorder.depth += 1

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        recorder.depth -= 1
        if not recorder.depth:
            recorder.add(name, module, (args, kwargs), output)

    for name, module in model.named_modules():
        if isinstance(module, WHOLE):
            handles.append(module.register_forward_pre_hook(enter))
            hook = partial(leave, name)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
