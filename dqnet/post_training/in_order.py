"""Layers one by one, each given what the layers before it, already changed, hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers import QuantLayer, quantized_layers
from dqnet.network import QuantizedModel
from dqnet.processes import world_size
from dqnet.trace import evaluating

Seen = TypeVar("Seen")


def in_order(
    model: QuantizedModel,
    images: Tensor,
    look: Callable[[QuantLayer, Tensor, Tensor], Seen],
    change: Callable[[str, QuantLayer, Tensor, Tensor, Seen], Tensor | None],
) -> None:
    """Two passes of the same images: in full precision, then quantized, layer after layer.

    The second pass stops at every layer until it is changed, so that one pass is enough for all of
    them and each sees the errors of those before it.

    Args:
        model: a static network, calibrated; in its evaluation mode meanwhile.
        images: ``[N, C, H, W]``, all that are used.
        look: (layer, its input, its output) in full precision → what ``change`` needs of it.
        change: (name, layer, its input, its output, what was seen) → the output in its place,
            or ``None`` to compute it anew.

    Raises:
        UserError: if the network is dynamic, a layer did not run or ran more than once, or there
            are several processes.
    """
    if model.routed_layers:
        raise UserError(
            "post-training methods fit one precision; quant.widths has several: give one"
        )
    if world_size() > 1:
        raise UserError("post-training methods run in one process, not under torchrun")
    layers = quantized_layers(model)
    seen: dict[str, Seen] = {}

    def first(name: str, layer: QuantLayer, args: tuple[Tensor], output: Tensor) -> None:
        if name in seen:
            raise UserError(f"layer {name!r} runs more than once for an image")
        seen[name] = look(layer, args[0], output)

    def second(name: str, layer: QuantLayer, args: tuple[Tensor], output: Tensor) -> Tensor:
        changed = change(name, layer, args[0], output, seen.pop(name))
        return layer.forward(args[0]) if changed is None else changed

    with evaluating(model), torch.no_grad():
        with model.unquantized(), _hooked(layers, first):
            model(images)
        for name in layers:
            if name not in seen:
                raise UserError(f"layer {name!r} did not run on the calibration images")
        with _hooked(layers, second):
            model(images)


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Forward hooks that are told the layers' names, for a while."""

    def named(name: str) -> Callable[..., Any]:
        return lambda module, args, output: hook(name, module, args, output)

    handles = [layer.register_forward_hook(named(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
