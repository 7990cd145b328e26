"""One pass through a float model: execution order, multiply-accumulates, signs of inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

#: a fixed seed: converting the same model twice gives the same result
PROBE_SEED = 0
#: images of the pass, at least: a squeeze-and-excite layer sees only a few numbers of each
PROBE_IMAGES = 4
#: what multiplies and accumulates, and is counted
LAYERS = (_ConvNd, nn.Linear)
#: products of two matrices; outside layers both are activations
MATRIX_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mm)
#: modules whose weights are looked up, or multiply elements one by one
NO_MACS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)


@dataclass
class LayerTrace:
    """What a pass showed of one convolution (of any kind) or fully connected layer.

    Attributes:
        name: its module name.
        order: when it first ran; modules that are not layers count as well.
        macs: multiply-accumulates for one image, over all its calls.
        weights: elements of its weight.
        inputs, outputs: elements for one image, over all its calls.
        signed: whether its input was ever negative.
        reads_images: whether its first input was the model's own.
        by_image: whether the first axis of every input was that of the images.
        sizes: of a convolution's outputs, ``(height, width)`` for each call.
    """

    name: str
    order: int
    weights: int = 0
    macs: int = 0
    inputs: int = 0
    outputs: int = 0
    signed: bool = False
    reads_images: bool = False
    by_image: bool = True
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def one_vector(self) -> bool:
        """Whether each image uses each weight once: a fully connected layer of one vector."""
        return self.macs <= self.weights


@dataclass
class Trace:
    """A pass through a model.

    Attributes:
        layers: convolutions and fully connected layers that ran, by module name, in order.
        finished: when each module first returned, on the same clock as ``LayerTrace.order``.
        shapes: output shape of each module that returned a tensor.
        products: what multiplies activations, as attention does, by module name.
        uncounted: modules that ran and have a weight of two axes or more, but are not layers: what
            they compute is not known.
        overwritten: whether the watched module's output was changed in place afterwards.
        image_shape: ``(C, H, W)`` of the images.
    """

    layers: dict[str, LayerTrace] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    products: dict[str, LayerTrace] = field(default_factory=dict)
    uncounted: list[str] = field(default_factory=list)
    overwritten: bool = False
    image_shape: tuple[int, ...] = ()


def trace_model(
    model: nn.Module, sample_input: Tensor, watched: str | None = None, signs: bool = True
) -> Trace:
    """Runs ``model`` once on noise of the shape of ``sample_input`` and records its layers.

    Noise, and noise on the affine parameters of the normalisation layers, because signs are asked
    for: a sample of zeros, or a block whose last scale starts at zero (as in many residual
    networks), would hide that a layer's input can be negative. The model is left as it was.

    Args:
        model: any module that takes ``sample_input``.
        sample_input: ``[N, C, H, W]``; its shape, type and device are used, not its values. Few
            images become :data:`PROBE_IMAGES`, so that one lucky draw hides no sign.
        watched: a module whose output is kept to see whether it is overwritten.
        signs: whether signs are asked for. Otherwise no parameter is touched, so that a backward
            pass may be outstanding.
    """
    trace = Trace(image_shape=tuple(sample_input.shape[1:]))
    kept: list[tuple[Tensor, int]] = []
    clock = iter(range(10**9))

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = _input(args, kwargs)
        if name not in trace.layers:
            reads_images = (x.data_ptr(), x.shape) == (noise.data_ptr(), noise.shape)
            weights = module.weight.numel()
            trace.layers[name] = LayerTrace(name, next(clock), weights, reads_images=reads_images)
        trace.layers[name].signed |= bool((x < 0).any())
        trace.layers[name].by_image &= len(x) == len(noise)

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trace.finished.setdefault(name, next(clock))
        if isinstance(output, Tensor):
            trace.shapes.setdefault(name, output.shape)
            if name == watched and not output.is_inference():  # which has no version
                kept.append((output, output._version))
            if name in trace.layers:
                _count(trace.layers[name], module, _input(args, kwargs), output, len(noise))
        if _multiplies(module) and name not in [*trace.layers, *trace.uncounted]:
            trace.uncounted.append(name)

    products = _MatrixProducts(clock)

    def start(name: str, module: nn.Module, args: Any) -> None:
        products.running.append(name)

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        products.running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(start, name)))
        if isinstance(module, LAYERS):
            hook = partial(enter, name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        handles.append(module.register_forward_hook(partial(leave, name), with_kwargs=True))
        handles.append(module.register_forward_hook(stop))
    generator = torch.Generator().manual_seed(PROBE_SEED)
    shape = max(len(sample_input), PROBE_IMAGES), *sample_input.shape[1:]
    noise = torch.randn(shape, generator=generator).to(sample_input)
    try:
        # Fused attention does not show its products; the plain form does.
        with (
            torch.no_grad(),
            evaluating(model),
            _noisy_norms(model, generator) if signs else nullcontext(),
            sdpa_kernel(SDPBackend.MATH),
            products,
        ):
            model(noise)
    finally:
        for handle in handles:
            handle.remove()
    for name, product in products.found.items():
        # A parametrization computes a weight, once for all images.
        if name not in trace.layers and ".parametrizations." not in f".{name}":
            product.macs //= len(noise)
            trace.products[name] = product
    trace.overwritten = any(output._version != version for output, version in kept)
    return trace


def warn_uncounted(trace: Trace) -> None:
    """Warns of modules whose computation no cost includes."""
    if trace.uncounted:
        warnings.warn(
            f"Bit-FLOPs leave out what {', '.join(trace.uncounted)} multiply: only convolutions "
            "and fully connected layers are counted",
            stacklevel=4,
        )


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _count(layer: LayerTrace, module: nn.Module, x: Tensor, output: Tensor, images: int) -> None:
    """Adds a call to what a layer costs one image; additions of a bias are not counted."""
    # A batch may be folded into other axes. What has a first axis of one does not depend on it.
    shares = 1 if len(output) == 1 else images
    # A transposed convolution multiplies every input by the weights, others make every output so.
    elements = x if isinstance(module, _ConvTransposeNd) else output
    layer.macs += elements.numel() * module.weight[0].numel() // shares
    layer.inputs += x.numel() // shares
    layer.outputs += output.numel() // shares
    if isinstance(module, nn.Conv2d):
        layer.sizes.append(tuple(output.shape[-2:]))


class _MatrixProducts(TorchDispatchMode):
    """Counts multiply-accumulates of products of two matrices, by the module that is running.

    Attributes:
        running: names of the modules that are running, the innermost last.
        found: by module name; multiply-accumulates are those of all images.
    """

    def __init__(self, clock: Iterator[int]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: dict[str, LayerTrace] = {}
        self._clock = clock

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in MATRIX_PRODUCTS:
            name = self.running[-1]
            if name not in self.found:
                self.found[name] = LayerTrace(name, next(self._clock), weights=0)
            self.found[name].macs += output.numel() * args[-2].shape[-1]
        return output


def _multiplies(module: nn.Module) -> bool:
    """Whether the module has a weight of its own by which it may multiply vectors."""
    own = module._parameters.items()
    matrices = [name for name, p in own if "weight" in name and p is not None and p.dim() > 1]
    return bool(matrices) and not isinstance(module, NO_MACS)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model and its modules into evaluation for as long as it is open."""
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

    def rescale(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Tensor], dict[str, Any]]:
        x = _input(args, kwargs)
        per_channel = *x.shape[:2], *[1] * (x.dim() - 2)
        offset = torch.randn(per_channel, generator=generator).to(x)
        x = F.batch_norm(x, None, None, training=True) + offset
        if module.running_mean is None:
            return (x,), {}
        to_channels = (-1, *per_channel[2:])
        spread = (module.running_var + module.eps).sqrt().view(to_channels)
        return ((x * spread + module.running_mean.view(to_channels)).to(x),), {}

    saved, handles = [], []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_pre_hook(rescale, with_kwargs=True))
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
