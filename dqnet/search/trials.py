"""Runs of one network with its layers at chosen precisions, each from the first change on.

What a network computes before a layer does not depend on that layer's precision. Operations are
therefore run one by one (``torch.fx``), and what is still needed at a layer can be kept. A network
that ``torch.fx`` cannot follow is run as a whole each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from dqnet.layers import QuantLayer
from dqnet.network import QuantizedModel
from dqnet.search.base import Batch

#: of each routed layer, the index of its precision among the network's K; ``None``: in full
Choices = Sequence[int | None]
#: what an operation returned, while it is still needed
Values = dict[fx.Node, Any]
#: of the largest tensor of a run on a CPU. Larger ones leave its caches, and the C library asks the
#: kernel for them each time: images of 224 x 224 took half as long again in batches of 32 as of 12.
LARGEST_BYTES = 2**26
#: of one run: of tiny images fewer take as long, which is what Python takes
MOST_IMAGES = 256


class _Tracer(fx.Tracer):
    """What holds no quantized layer is one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = any(isinstance(module, QuantLayer) for module in m.modules())
        return isinstance(m, QuantLayer) or not inside


class Operations:
    """A backbone's operations in order.

    Attributes:
        starts: of each routed layer, the operation before which values are kept for it; all 0
            where the network is one operation.
    """

    def __init__(self, model: QuantizedModel, images: Tensor) -> None:
        names = [layer.name for layer in model.routed_layers]
        self.model = model
        self.starts = [0] * len(names)
        self._nodes: list[fx.Node] = []
        try:
            graph = _Tracer().trace(model.backbone)
            module = fx.GraphModule(model.backbone, graph)
        except Exception:  # whatever a proxy meets in a stranger's code
            return
        nodes = list(graph.nodes)
        first: dict[Any, int] = {}
        for i, node in enumerate(nodes):
            first.setdefault(node.target, i)
        if [first.get(name, -1) for name in names] != sorted(first.get(name, -1) for name in names):
            return
        self._interpreter = fx.Interpreter(module)
        last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
        self._dead = [
            [source for source in node.all_input_nodes if last[source] == i]
            for i, node in enumerate(nodes)
        ]
        with torch.no_grad(), model.fixed([0] * len(names), images), model.unquantized():
            whole = model.backbone(images)
            self._nodes = nodes
            if not torch.allclose(self.run({}, images), whole, rtol=1e-4, atol=1e-5):
                self._nodes = []  # Python code depends on what it computes
                return
        self.starts = [first[name] for name in names]

    def run(self, values: Values, images: Tensor, start: int = 0, stop: int | None = None) -> Any:
        """Runs operations from ``start`` to before ``stop``; ``values`` is changed in place.

        Returns:
            What the last one returned.
        """
        if not self._nodes:
            return self.model.backbone(images) if stop is None else None
        interpreter, result = self._interpreter, None
        interpreter.env, interpreter.args_iter = values, iter([images])
        for i in range(start, len(self._nodes) if stop is None else stop):
            node = self._nodes[i]
            result = interpreter.run_node(node)
            values[node] = result
            for dead in self._dead[i]:
                del values[dead]
        return result


def _parts(model: QuantizedModel, batches: Sequence[Batch]) -> Iterator[Batch]:
    """The same images in batches that run fast."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    largest = max(max(layer.inputs, layer.outputs) for layer in model.layers)
    count = MOST_IMAGES
    if images.device.type == "cpu":
        count = min(count, max(1, LARGEST_BYTES // (images.element_size() * largest)))
    return zip(images.split(count), labels.split(count), strict=True)


class Trials:
    """What a network answers to some images with different choices.

    Args:
        operations: the network's.
        batches: images and labels, which are run in smaller or larger ones where that is faster.
    """

    def __init__(self, operations: Operations, batches: Sequence[Batch]) -> None:
        self.operations = operations
        model = operations.model
        self.batches = list(_parts(model, batches))
        self._layers = [model.backbone.get_submodule(own.name) for own in model.routed_layers]
        self.full: Choices = [None] * len(self._layers)
        self.labels = torch.cat([labels for _, labels in self.batches])
        self._forget()

    def keep(self, chosen: Choices, layer: int) -> None:
        """Runs whose choices before ``layer`` are those of ``chosen`` will start there."""
        if list(chosen[: len(self._before)]) != self._before or layer < len(self._before):
            self._forget()
        start, stop = self._start, self.operations.starts[layer]
        for values, (images, _) in zip(self._values, self.batches, strict=True):
            self._run(values, images, chosen, start, stop)
        self._before, self._start = list(chosen[:layer]), stop

    def logits(self, chosen: Choices) -> Tensor:
        """The answers ``[N, C]`` with these choices."""
        if list(chosen[: len(self._before)]) != self._before:
            self._forget()
        parts = []
        for values, (images, _) in zip(self._values, self.batches, strict=True):
            # An operation may overwrite what it reads, and what is kept has to stay.
            copied = tree_map_only(Tensor, Tensor.clone, values) if values else {}
            parts.append(self._run(copied, images, chosen, self._start, None).float())
        return torch.cat(parts)

    def hits(self, chosen: Choices) -> int:
        """How many of the images are answered right."""
        return int((self.logits(chosen).argmax(1) == self.labels).sum())

    def _forget(self) -> None:
        self._values: list[Values] = [{} for _ in self.batches]
        self._before: list[int | None] = []
        self._start = 0

    def _run(
        self, values: Values, images: Tensor, chosen: Choices, start: int, stop: int | None
    ) -> Any:
        for layer, own in zip(self._layers, chosen, strict=True):
            layer.unquantized = own is None
        # What a layer in full precision would run at is not looked at.
        columns = [self._any(i) if own is None else own for i, own in enumerate(chosen)]
        try:
            with torch.no_grad(), self.operations.model.fixed(columns, images):
                return self.operations.run(values, images, start, stop)
        finally:
            for layer in self._layers:
                layer.unquantized = False

    def _any(self, layer: int) -> int:
        """One of a layer's own precisions."""
        candidates = self.operations.model.candidates
        return 0 if candidates is None else int(candidates[layer].int().argmax())
