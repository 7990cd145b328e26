"""Which convolutions' filters can be removed alone, found from the graph of the network.

The output of such a filter reaches other weights through norms, activations that map zero to zero,
pooling and depthwise convolutions alone: in a ResNet these are the inner convolutions of a block.
Where it is added to other outputs, as at the end of a residual block, those would have to go, too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from dqnet.graph import Operation, Operations, operations

#: what has an output of zero for a channel of zeros, and no weights
_PASSES_ZERO = ("max_pool", "average_pool", "mean", "flatten", "slice")


def free_filters(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, list[str]]:
    """By layer: the modules that have values of their own for each of its filters.

    They are the norm behind the layer, depthwise convolutions and their norms. Where the filter and
    what they have of it are zero, it can be removed together with the weights that read it, and
    the network's output is the same.

    Args:
        network: a float model, or a converted backbone that runs in full precision meanwhile.
        image_shape: ``(C, H, W)``.

    Raises:
        UserError: if the network has no fixed graph.
    """
    found = operations(network, image_shape)
    modules = [step.module for step in found.steps if step.module is not None]
    repeated = {module for module in modules if modules.count(module) > 1}
    free: dict[str, list[str]] = {}
    for index, step in enumerate(found.steps):
        if step.kind != "layer" or not isinstance(step.module, nn.Conv2d) or step.module.groups > 1:
            continue
        behind = None if step.module in repeated else _behind(found, index, repeated)
        if behind is not None:
            free[step.name] = [each.name for each in behind]
    return free


def _behind(
    found: Operations, index: int, repeated: Collection[nn.Module]
) -> list[Operation] | None:
    """What a filter's output runs through, of steps with values of their own.

    ``None`` if it ends elsewhere than in layers, does not stay zero, or comes to a module that
    runs on something else as well.
    """
    behind: list[Operation] = []
    readers = [i for i, step in enumerate(found.steps) if index in step.inputs]
    if not readers:  # it is the network's result
        return None
    for reader in readers:
        step = found.steps[reader]
        if step.module in repeated:
            return None
        if step.kind == "layer" and not _is_depthwise(step.module):
            if step.module.weight.dim() == 4 and step.module.groups == 1:
                continue
            if isinstance(step.module, nn.Linear) and len(found.steps[index].shape) == 1:
                continue
            return None
        if step.kind in ("layer", "norm"):
            if step.module.weight is None:
                return None
            behind.append(step)
        elif not _keeps_zero(step):
            return None
        further = _behind(found, reader, repeated)
        if further is None:
            return None
        behind += further
    return list(dict.fromkeys(behind))


def _is_depthwise(layer: nn.Module) -> bool:
    """Whether each output is of one input and each input goes into one output."""
    return isinstance(layer, nn.Conv2d) and (
        1 < layer.groups == layer.in_channels == layer.out_channels
    )


def _keeps_zero(step: Operation) -> bool:
    """Whether a channel that is zero everywhere is that after an operation without weights."""
    if step.kind == "clip":
        low, high = (torch.as_tensor(step.options[end]) for end in ("low", "high"))
        return bool((low <= 0).all() and (high >= 0).all())
    if step.kind == "pad":
        return _of_image_axes(step.options["margins"])
    return step.kind in _PASSES_ZERO


def _of_image_axes(margins: tuple[Any, ...]) -> bool:
    return not any(margins[4:])
