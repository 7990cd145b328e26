"""Fewer output channels: the shape of a network whose filters were removed.

The removal (:mod:`dqnet.pruning.remove`) needs weights; this is what is left of it in a
configuration, so that the smaller network can be built anew wherever a checkpoint of it is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.errors import UserError, unknown_name
from dqnet.trace import evaluating
from dqnet.transforms.base import transform

#: what has channels and can have fewer
_RESIZED = (nn.Conv2d, nn.Linear, _BatchNorm)


@transform("channels")
@dataclass(frozen=True)
class Channels:
    """Layers with fewer output channels; what reads them has fewer inputs.

    Attributes:
        counts: layer → its output channels, from 1 to those that it has. Layers that are not named
            keep theirs, but for depthwise convolutions, which have as many as their input.
    """

    from_scratch: ClassVar[bool] = True  # which filters to keep of trained ones it cannot know

    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        if not isinstance(self.counts, Mapping) or not self.counts:
            raise UserError(f"counts {self.counts!r} of channels is not a table of layer: channels")

    @torch.no_grad()
    def __call__(self, model: nn.Module, sample_input: Tensor) -> None:
        """See :class:`~dqnet.transforms.base.Transform`."""
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        for name, count in self.counts.items():
            if name not in layers:
                raise unknown_name("layer of channels", name, layers)
            most = len(layers[name].weight)
            if type(count) is not int or not 1 <= count <= most:
                raise UserError(
                    f"channels: layer {name!r} has {most} output channels, and cannot have {count}"
                )
        trial = copy.deepcopy(model)
        try:
            with evaluating(trial), _resizing(trial, self.counts):
                trial(sample_input[:1])
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise UserError(f"channels: these counts do not fit each other: {line}") from error
        sizes = {n: _sizes(m) for n, m in trial.named_modules() if isinstance(m, _RESIZED)}
        for name, count in self.counts.items():
            if sizes[name][0] != count:
                raise UserError(
                    f"channels: depthwise layer {name!r} has as many channels as its input, "
                    f"{sizes[name][0]}, not {count}"
                )
        for name, (outputs, inputs) in sizes.items():
            _resize(model.get_submodule(name), outputs, inputs)


@contextmanager
def _resizing(model: nn.Module, counts: Mapping[str, int]) -> Iterator[None]:
    """While it is open, every layer that runs takes the size that its input and its count ask."""

    def fit(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0].shape[-1 if isinstance(module, nn.Linear) else 1]
        outputs, own = _sizes(module)
        if isinstance(module, _BatchNorm):
            outputs = inputs
        elif _is_depthwise(module):
            outputs = outputs // own * inputs
        else:
            outputs = counts.get(name, outputs)
        _resize(module, outputs, inputs)

    handles = [
        module.register_forward_pre_hook(partial(fit, name))
        for name, module in model.named_modules()
        if isinstance(module, _RESIZED)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Output and input channels; equal for a norm."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _BatchNorm):
        return module.num_features, module.num_features
    return module.out_channels, module.in_channels


def _resize(module: nn.Module, outputs: int, inputs: int) -> None:
    """Leaves a module its first outputs and inputs."""
    if _sizes(module) == (outputs, inputs):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = outputs, inputs
    elif isinstance(module, _BatchNorm):
        module.num_features = outputs
    else:
        if _is_depthwise(module):
            module.groups = inputs
        module.out_channels, module.in_channels = outputs, inputs
    for name, value in module._parameters.items():
        if value is not None:
            kept = value[:outputs] if value.dim() == 1 else value[:outputs, :inputs]
            module._parameters[name] = nn.Parameter(kept.clone(), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None and value.dim():
            module._buffers[name] = value[:outputs].clone()
