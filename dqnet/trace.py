"""One pass through a float model: execution order, multiply-accumulates, signs of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: a fixed seed: converting the same model twice gives the same result
PROBE_SEED = 0
#: images of the pass, at least: a squeeze-and-excite layer sees only a few numbers of each
PROBE_IMAGES = 4


@dataclass
class LayerTrace:
    """What a pass showed of one convolution or fully connected layer.

    Attributes:
        name: its module name.
        order: when it first ran; modules that are not layers count as well.
        macs: multiply-accumulates for one image, over all its calls.
        signed: whether its input was ever negative.
    """

    name: str
    order: int
    macs: int
    signed: bool


@dataclass
class Trace:
    """A pass through a model.

    Attributes:
        layers: convolutions and fully connected layers that ran, by module name, in order.
        finished: when each module first returned, on the same clock as ``LayerTrace.order``.
        shapes: output shape of each module that returned a tensor.
    """

    layers: dict[str, LayerTrace] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)


def trace_model(model: nn.Module, sample_input: Tensor) -> Trace:
    """Runs ``model`` once on noise of the shape of ``sample_input`` and records its layers.

    Noise, and noise on the affine parameters of the normalisation layers, because signs are asked
    for: a sample of zeros, or a block whose last scale starts at zero (as in many residual
    networks), would hide that a layer's input can be negative. The model is left as it was.

    Args:
        model: any module that takes ``sample_input``.
        sample_input: ``[N, C, H, W]``; its shape, type and device are used, not its values. Few
            images become :data:`PROBE_IMAGES`, so that one lucky draw hides no sign.
    """
    trace = Trace()
    clock = iter(range(10**9))

    def enter(name: str, module: nn.Module, x: Tensor) -> None:
        if name not in trace.layers:
            trace.layers[name] = LayerTrace(name, next(clock), 0, False)
        trace.layers[name].signed |= bool((x < 0).any())

    def leave(name: str, module: nn.Module, output: Any) -> None:
        trace.finished.setdefault(name, next(clock))
        if isinstance(output, Tensor):
            trace.shapes.setdefault(name, output.shape)
            if name in trace.layers:
                trace.layers[name].macs += _macs(module, output)

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(
                module.register_forward_pre_hook(lambda m, args, name=name: enter(name, m, args[0]))
            )
        handles.append(
            module.register_forward_hook(lambda m, args, out, name=name: leave(name, m, out))
        )
    generator = torch.Generator().manual_seed(PROBE_SEED)
    shape = max(len(sample_input), PROBE_IMAGES), *sample_input.shape[1:]
    noise = torch.randn(shape, generator=generator).to(sample_input)
    try:
        with torch.no_grad(), _evaluating(model), _noisy_norms(model, generator):
            model(noise)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _macs(module: nn.Module, output: Tensor) -> int:
    """Multiply-accumulates for one image; additions of a bias are not counted."""
    per_output = module.weight[0].numel()
    if isinstance(module, nn.Conv2d):
        return output[0].numel() * per_output
    return prod(output.shape[1:]) * per_output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _noisy_norms(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """For as long as it is open, batch norms fit the probe, with noise on their scale and shift.

    Running statistics do not fit it: with them values would grow from layer to layer, up to
    overflow, and SiLU of a large number is never below zero. So inputs are brought to the running
    mean and variance first, plus an offset of each image's own.
    """

    def rescale(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        (x,) = args
        per_channel = *x.shape[:2], *[1] * (x.dim() - 2)
        offset = torch.randn(per_channel, generator=generator).to(x)
        x = F.batch_norm(x, None, None, training=True) + offset
        if module.running_mean is None:
            return x
        to_channels = (-1, *per_channel[2:])
        spread = (module.running_var + module.eps).sqrt().view(to_channels)
        return (x * spread + module.running_mean.view(to_channels)).to(x)

    saved, handles = [], []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_pre_hook(rescale))
            for parameter in module.parameters(recurse=False):
                saved.append((parameter, parameter.detach().clone()))
                parameter += 2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in saved:
            parameter.copy_(value)
