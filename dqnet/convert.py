"""Float model in, quantized model out: trace, swap the layers, attach the controller."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.controller import Controller, check_controller
from dqnet.errors import UserError, unknown_name
from dqnet.layers import QuantConv2d, QuantLinear
from dqnet.network import LayerInfo, QuantizedModel
from dqnet.quantizers import Quantizer, check_widths, find_quantizer
from dqnet.trace import Trace, trace_model

#: shortcut projections, which every image runs at the same width
DEFAULT_STATIC = ("*downsample*", "*shortcut*")
CHOICE_GRADIENTS = ("exact", "sampled")
#: what is quantized or refused; other convolutions are counted and left as they are
QUANTIZABLE = (nn.Conv2d, nn.Linear)
#: layers whose forward pass is what their base class computes
CONVERTIBLE = (nn.Conv2d, Conv2dSame, nn.Linear)


def quantize(
    model: nn.Module,
    sample_input: Tensor,
    widths: Sequence[int] = (2, 3, 4),
    quantizer: str | type[Quantizer] = "dorefa",
    shared_until: str | None = "auto",
    *,
    static_width: int | None = None,
    full_precision: Sequence[str] | None = None,
    static: Sequence[str] = DEFAULT_STATIC,
    options: dict[str, Any] | None = None,
    controller: ControllerConfig | None = None,
    choice_gradient: str = "exact",
    width_affine: bool = True,
) -> QuantizedModel:
    """Converts a plain CNN; with one width the result is static, with several it is dynamic.

    The model is converted in place and becomes the result's backbone: every quantized layer holds
    the float layer's own parameters under the float layer's name.

    Args:
        model: a float model that takes ``sample_input`` and returns logits.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used. Costs are those
            of images of this size.
        widths: candidate bit-widths, ascending, each from 1 to 16.
        quantizer: the name or the class of a number format.
        shared_until: module name of the split point: layers that run before its output appears
            are static, and the shared controller reads that output. ``"auto"``: the first stage
            after the stem, of those that timm's ``feature_info`` lists. ``None``: no shared layers,
            for the separate controller, whose ``"auto"`` it is. A static network has no split
            point.
        static_width: the width of static layers; by default the middle of ``widths`` (the upper
            of the two middle ones).
        full_precision: name patterns (as of a shell) of layers to leave as they are; by default
            the first convolution, any other that reads the image, and the classifier.
            Convolutions that are not 2-D, and transposed ones, always are.
        static: name patterns of layers that run at ``static_width`` for every image. Fully
            connected layers always do.
        options: the quantizer's own arguments.
        controller: the controller's form.
        choice_gradient: ``"exact"``, or ``"sampled"``: an unbiased estimate that is cheaper with
            three widths or more (see :mod:`dqnet.layers.routed_conv`).
        width_affine: let each width of a routed layer scale and shift its output by learned values
            of its own (see :mod:`dqnet.layers.width_affine`).

    Raises:
        UserError: for an unknown name, a bad width, a pattern that matches nothing, a split point
            that does not exist or leaves nothing to route, a layer that cannot be converted, or a
            sample that the model does not take.
    """
    _check_model(model, sample_input)
    widths = check_widths(widths)
    quantizer = find_quantizer(quantizer)
    static = [static] if isinstance(static, str) else static
    if isinstance(full_precision, str):
        full_precision = [full_precision]
    controller = ControllerConfig() if controller is None else controller
    check_controller(controller)
    if choice_gradient not in CHOICE_GRADIENTS:
        raise unknown_name("choice_gradient", choice_gradient, CHOICE_GRADIENTS)
    if static_width is None:
        static_width = widths[len(widths) // 2]
    (static_width,) = check_widths([static_width])
    if len(widths) == 1 and widths != (static_width,):
        raise UserError(
            f"static_width {static_width} does nothing with widths {widths}: "
            "with one width every layer is static at it"
        )

    split = _split_point(model, shared_until, controller, dynamic=len(widths) > 1)
    try:
        trace = trace_model(model, sample_input, watched=split)
    except RuntimeError as error:
        what = f"{sample_input.dtype} {list(sample_input.shape)}"
        reason = str(error).partition("\n")[0]
        raise UserError(f"the model does not run on the sample_input, {what}: {reason}") from error
    if trace.uncounted:
        warnings.warn(
            f"Bit-FLOPs leave out what {', '.join(trace.uncounted)} multiply: only convolutions "
            "and fully connected layers are counted",
            stacklevel=2,
        )
    names = [n for n in trace.layers if isinstance(model.get_submodule(n), QUANTIZABLE)]
    if full_precision is None:
        full_precision = _first_and_last(model, trace, names)
    _check_patterns("full_precision", full_precision, list(trace.layers))
    if tuple(static) != DEFAULT_STATIC:
        _check_patterns("static", static, names)

    if split is not None:
        try:
            _check_split_point(model, trace, split, len(widths) > 1 and controller.kind == "shared")
        except UserError as error:
            if shared_until != "auto":
                raise
            found = "the model lists it as its first stage, so name another with shared_until=..."
            raise UserError(f"{error}; {found}") from error

    layers = []
    for name, traced in trace.layers.items():
        module = model.get_submodule(name)
        if name not in names or _matches(name, full_precision):
            layers.append(LayerInfo(name, "full", (32,), traced.macs))
            continue
        if type(module) not in CONVERTIBLE:
            raise UserError(
                f"layer {name!r} is a {type(module).__name__}, which has no quantized form; "
                f"keep it as it is with full_precision={[*full_precision, name]}"
            )
        if "weight" not in module._parameters:
            raise UserError(
                f"layer {name!r} computes its weight (weight norm, pruning); make it a parameter "
                "first (remove_weight_norm, prune.remove), or keep the layer as it is with "
                f"full_precision={[*full_precision, name]}"
            )
        before = split is not None and traced.order < trace.finished[split]
        routed = (
            len(widths) > 1
            and isinstance(module, nn.Conv2d)
            and not before
            and not _matches(name, static)
        )
        own = widths if routed or len(widths) == 1 else (static_width,)
        layers.append(LayerInfo(name, "routed" if routed else "static", own, traced.macs))

    if not any(layer.role != "full" for layer in layers):
        raise UserError("no layer is left to quantize; full_precision matches every one")
    routed = [layer for layer in layers if layer.role == "routed"]
    if len(widths) > 1 and not routed:
        raise UserError(f"split point {split!r} leaves nothing to route; choose an earlier module")

    swaps: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        if layer.role != "full":
            module = model.get_submodule(layer.name)
            arguments = (layer.widths, quantizer, trace.layers[layer.name].signed, options)
            if isinstance(module, nn.Conv2d):
                swaps[module] = QuantConv2d.from_float(module, *arguments, width_affine)
            else:
                swaps[module] = QuantLinear.from_float(module, *arguments)
            # Not copies, so that their handles still remove them.
            hooks = {
                k: v for k, v in vars(module).items() if "_hook" in k and "state_dict" not in k
            }
            vars(swaps[module]).update(hooks)

    head = None
    source = split if routed and controller.kind == "shared" else None  # None: the image
    if routed:
        shape = sample_input.shape if source is None else trace.shapes[source]
        head = Controller(tuple(shape[1:]), len(routed), len(widths), controller)
        head.to(sample_input.device)
    _swap(model, swaps)  # last, so that a refused conversion leaves the model as it was
    converted = QuantizedModel(
        model, head, source, tuple(layers), widths, choice_gradient, trace.overwritten
    )
    if sample_input.device.type == "cpu":
        # A convolution of many small groups is a tenth faster in this format, and passes it on.
        # Not by converted.to(), which refuses parameters of five axes.
        for tensor in (*converted.parameters(), *converted.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return converted


def _check_model(model: nn.Module, sample_input: Tensor) -> None:
    """Raises UserError for what is no float model, or no batch of images."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}; it must be an nn.Module")
    if any(isinstance(module, (QuantConv2d, QuantLinear)) for module in model.modules()):
        raise UserError("the model is already converted; convert a float one")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"convert what is in the {type(model).__name__}: its .module")
    if isinstance(model, QUANTIZABLE):
        raise UserError(
            "the model is a single layer; convert it with QuantConv2d.from_float (QuantLinear), or "
            "inside an nn.Sequential"
        )
    if not isinstance(sample_input, Tensor):
        kind = type(sample_input).__name__
        raise UserError(f"sample_input is a {kind}; give a tensor, e.g. torch.zeros(1, 3, 32, 32)")
    if sample_input.dim() != 4 or not sample_input.is_floating_point():
        raise UserError(
            f"sample_input must be images [N, C, H, W] of floating point, not {sample_input.dtype} "
            f"{list(sample_input.shape)}"
        )


def _first_and_last(model: nn.Module, trace: Trace, names: list[str]) -> list[str]:
    """The first convolution, others that read the image, and the classifier."""
    convs = [n for n in names if isinstance(model.get_submodule(n), nn.Conv2d)]
    readers = [n for n in convs[1:] if trace.layers[n].reads_images]
    return list(dict.fromkeys([*convs[:1], *readers, *names[-1:]]))


def _split_point(
    model: nn.Module, name: str | None, controller: ControllerConfig, dynamic: bool
) -> str | None:
    """The module after which layers are routed; ``None``: from the start, or nowhere."""
    if name == "auto":
        if controller.kind == "separate" or not dynamic:
            return None
        stages = getattr(model, "feature_info", None) or []
        # Some models hold a FeatureInfo object, which lists alike.
        stages = [s["module"] for s in getattr(stages, "info", stages)]
        if len(stages) < 2:
            raise UserError(
                "the model does not list its stages, so its split point cannot be found: "
                "name the last shared module with shared_until"
            )
        return stages[0] if _is_stage(model, stages[0]) else stages[1]
    if name is not None and not isinstance(name, str):
        raise UserError(f"shared_until is a {type(name).__name__}; give the module's name, a str")
    if name is None and controller.kind == "shared" and dynamic:
        raise UserError("a shared controller reads a module's output: name it in shared_until")
    return name


def _is_stage(model: nn.Module, name: str) -> bool:
    """Whether a module is a stage and not a stem, with which most models' lists begin."""
    module = dict(model.named_modules()).get(name, model)
    layers = [m for m in module.modules() if isinstance(m, QUANTIZABLE)]
    return module is not model and len(layers) > 1 and not name.startswith("stem")


def _check_split_point(model: nn.Module, trace: Trace, name: str, read: bool) -> None:
    """Raises UserError unless the module ran; and if it is read, returned feature maps."""
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise unknown_name("split point", name, [n for n in modules if n])
    if name not in trace.shapes:
        raise UserError(f"split point {name!r} never returned a tensor when the model ran")
    if read and len(trace.shapes[name]) != 4:
        raise UserError(
            f"split point {name!r} returns shape {list(trace.shapes[name])}; "
            "the controller reads feature maps [N, C, H, W]: choose an earlier module"
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(kind: str, patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown_name(f"{kind} layer", pattern, names)


def _swap(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> None:
    """Replaces modules under every name that they have, also in a module's own lists."""
    for parent in list(model.modules()):
        for held in vars(parent).values():  # the children are in one of them
            if isinstance(held, (list, dict)):
                for key, child in enumerate(held) if isinstance(held, list) else [*held.items()]:
                    if isinstance(child, nn.Module) and child in swaps:
                        held[key] = swaps[child]
