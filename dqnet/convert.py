"""Float model in, quantized model out: plan, swap the layers, attach the controller."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.controllers import build_controller, check_controller
from dqnet.convertible import check_convertible, check_model
from dqnet.dataflow import dataflow
from dqnet.errors import UserError, unknown_name
from dqnet.formats import MAX_BITS, MIN_BITS, Precision, common_precisions
from dqnet.graph import operations
from dqnet.layers import QuantConv2d, QuantLayer, QuantLinear
from dqnet.layers.following_norm import FORMS, FollowingNorm
from dqnet.layers.quantization import Quantization
from dqnet.layers.winograd import Winograd
from dqnet.module_swap import swap_modules
from dqnet.network import QuantizedModel
from dqnet.norm_pairs import norm_pairs
from dqnet.plan import LayerPlan, Plan
from dqnet.quantizers import Method, Options, find_quantizers
from dqnet.residual import ValueQuantizer, check_residual, places
from dqnet.rules import (
    DEFAULT_STATIC,
    Rule,
    Rules,
    plan_by_rules,
    with_winograd,
)
from dqnet.split import split_point
from dqnet.trace import Trace, trace_model, warn_uncounted

CHOICE_GRADIENTS = ("exact", "sampled")


def quantize(
    model: nn.Module,
    sample_input: Tensor,
    widths: Sequence[int | str | Precision] = (2, 3, 4),
    quantizer: Method = "dorefa",
    shared_until: str | None = "auto",
    *,
    plan: Plan | None = None,
    static_width: int | str | None = None,
    first_last: int | str = "full",
    full_precision: Sequence[str] | None = None,
    static: Sequence[str] = DEFAULT_STATIC,
    layers: Mapping[str, Rule] | None = None,
    options: Options = None,
    controller: ControllerConfig | None = None,
    choice_gradient: str = "exact",
    width_affine: bool = True,
    fold_batch_norm: str | bool = False,
    gradient_bits: int | None = None,
    residual: int | None = None,
    winograd: Winograd | None = None,
) -> QuantizedModel:
    """Converts a plain CNN; with one width the result is static, with several it is dynamic.

    The model is converted in place and becomes the result's backbone: every quantized layer holds
    the float layer's own parameters under the float layer's name.

    Args:
        model: a float model that takes ``sample_input`` and returns logits.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used. Costs are those
            of images of this size.
        widths: candidate precisions, ascending: bits, each from 1 to 16, or ``"w4a8"``.
        quantizer: a method by name or class, or a pair of them for weights and inputs.
        shared_until: module name of the split point: layers that run before its output appears
            are static, and the shared controller reads that output. ``"auto"``: the first stage
            after the stem, of those that timm's ``feature_info`` lists. ``None``: no shared layers,
            for the separate controller, whose ``"auto"`` it is. A static network has no split
            point.
        plan: what every layer runs at; instead of the rules below and ``widths``.
        static_width, first_last, full_precision, static, layers: see
            :class:`dqnet.rules.Rules`.
        options: the quantizers' own arguments; a pair where weights and inputs differ.
        controller: the controller's form.
        choice_gradient: ``"exact"``, or ``"sampled"``: an unbiased estimate that is cheaper with
            three widths or more (see :mod:`dqnet.layers.sampled`).
        width_affine: let each width of a routed layer scale and shift its output by learned values
            of its own (see :mod:`dqnet.layers.width_affine`).
        fold_batch_norm: ``"corrected"`` or ``"uncorrected"``: weights are quantized with the scale
            of the batch norm behind them, as an integer network needs them (see
            :mod:`dqnet.layers.following_norm`).
        gradient_bits: what the gradient to each quantized layer's output is quantized to in
            training, 1 to 16 bits (see :mod:`dqnet.layers.gradient_bits`); ``None``: it is not.
        residual: bits, 2 to 8, of what is added, pooled or concatenated between layers, which an
            integer network holds as codes (see :mod:`dqnet.residual`); ``None``: float32.
        winograd: quantized 3 x 3 convolutions of stride 1 become Winograd convolutions (see
            :mod:`dqnet.layers.winograd_domain`), of a static network; ``None``: as the plan says,
            if one is given.

    Raises:
        UserError: for an unknown name, a bad width, a pattern that matches nothing, a split point
            that does not exist or leaves nothing to route, a plan of another model, a layer that
            cannot be converted, a batch norm to fold that two layers share, or a sample that the
            model does not take.
    """
    rules = Rules.parse(widths, static_width, static, first_last, full_precision, layers)
    controller = ControllerConfig() if controller is None else controller
    check_controller(controller)
    find_quantizers(quantizer)
    if choice_gradient not in CHOICE_GRADIENTS:
        raise unknown_name("choice_gradient", choice_gradient, CHOICE_GRADIENTS)
    if gradient_bits not in (None, *range(MIN_BITS, MAX_BITS + 1)):
        raise UserError(
            f"gradient_bits {gradient_bits} must be an integer from {MIN_BITS} to {MAX_BITS}, or "
            "none for gradients as they are"
        )
    check_residual(residual)
    if not isinstance(winograd, Winograd | None):
        raise UserError(f"winograd {winograd!r} is not a dqnet.layers.Winograd, e.g. Winograd(4)")
    trace, split, plan = make_plan(model, sample_input, rules, plan, shared_until, controller)
    plan = with_winograd(plan, model, trace, winograd)

    norms = _norms_to_fold(model, sample_input, plan, quantizer, fold_batch_norm)

    between: dict[str, ValueQuantizer] = {}
    if residual is not None:
        steps = operations(model, tuple(sample_input.shape[1:]))
        signs = places(steps, {layer.name for layer in plan.routed})
        between = {
            name: ValueQuantizer(residual, signed).to(sample_input.device)
            for name, signed in signs.items()
        }

    how = Quantization(quantizer, options, width_affine, gradient_bits)
    swaps = {
        model.get_submodule(layer.name): _quantized(
            model.get_submodule(layer.name), layer, how, trace.layers[layer.name].signed
        )
        for layer in plan.layers
        if layer.role != "full"
    }
    for layer, norm in norms.items():
        swaps[layer].following = FollowingNorm(norm, fold_batch_norm)
    head = None
    source = split if plan.routed and controller.kind == "shared" else None  # None: the image
    if plan.routed:
        shape = sample_input.shape if source is None else trace.shapes[source]
        candidates = common_precisions(plan.routed)
        head = build_controller(tuple(shape[1:]), len(plan.routed), len(candidates), controller)
        head.to(sample_input.device)
    swap_modules(model, swaps)  # last, so that a refused conversion leaves the model as it was
    converted = QuantizedModel(
        model, head, source, plan, sample_input.shape[1:], choice_gradient, trace.overwritten,
        between,
    )  # fmt: skip
    if sample_input.device.type == "cpu":
        # A convolution of many small groups is a tenth faster in this format, and passes it on.
        # Not by converted.to(), which refuses parameters of five axes.
        for tensor in (*converted.parameters(), *converted.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return converted


def make_plan(
    model: nn.Module,
    sample_input: Tensor,
    rules: Rules,
    given: Plan | None = None,
    shared_until: str | None = "auto",
    controller: ControllerConfig | None = None,
) -> tuple[Trace, str | None, Plan]:
    """The first step of :func:`quantize`, whose arguments these are; changes nothing.

    Returns:
        A pass through the model, the split point's name, and what every layer is to run at: the
        plan that is given, if it fits the model, or else one by the rules.
    """
    check_model(model, sample_input)
    controller = controller or ControllerConfig()
    dynamic = rules.dynamic if given is None else bool(given.routed)
    split = split_point(model, shared_until, controller, dynamic)
    try:
        trace = trace_model(model, sample_input, watched=split.name)
    except RuntimeError as error:
        what = f"{sample_input.dtype} {list(sample_input.shape)}"
        reason = str(error).partition("\n")[0]
        raise UserError(f"the model does not run on the sample_input, {what}: {reason}") from error
    warn_uncounted(trace)
    split.check(model, trace, read=dynamic and controller.kind == "shared")
    made = plan_by_rules(model, trace, rules, split.name)
    if given is not None:
        made = given.for_images_of(made)
    check_convertible(model, trace, made, split.name)
    if not any(layer.role != "full" for layer in made.layers):
        raise UserError("no layer is left to quantize; full_precision matches every one")
    if dynamic and not made.routed:
        raise UserError(
            f"split point {split.name!r} leaves nothing to route; choose an earlier module"
        )
    return trace, split.name, made


def _norms_to_fold(
    model: nn.Module, sample_input: Tensor, plan: Plan, quantizer: Method, form: str | bool
) -> dict[nn.Module, nn.Module]:
    """The norms that are folded into layers: layer → norm. Warns of those that are not.

    Raises:
        UserError: if two layers share one, the form is unknown, or there is none to fold.
    """
    if form is False:
        return {}
    if form not in FORMS:
        hint = "(or false; to fold norms for good: true in a run, dqnet.fold_batch_norms in Python)"
        raise unknown_name("fold_batch_norm", str(form), FORMS, hint)
    weights = find_quantizers(quantizer)[0]
    if weights.rescales:
        raise UserError(
            f"fold_batch_norm: {weights.__name__} brings every weight to a scale of its own, so "
            "that a norm's scale has no effect on it; quantize weights with lsq or affine"
        )
    if weights.keeps_weight:
        raise UserError(
            f"fold_batch_norm: {weights.__name__} assigns weights to clusters once, which a norm "
            "that changes in training would undo; fold_batch_norm=true folds norms for good"
        )
    pairs = norm_pairs(model, dataflow(model, sample_input))
    if pairs.shared:
        name = pairs.shared[0]
        raise UserError(
            f"fold_batch_norm: batch norm {name!r} {pairs.reasons[name]}; give each a norm of its "
            "own, or leave fold_batch_norm=false"
        )
    quantized = {layer.name for layer in plan.layers if layer.role != "full"}
    found = {layer: norm for layer, norm in pairs.norm_of.items() if layer in quantized}
    if not found:
        raise UserError("fold_batch_norm: no quantized layer has a batch norm of its own behind it")
    for name, why in pairs.reasons.items():
        warnings.warn(f"batch norm {name!r} is not folded: it {why}", stacklevel=3)
    return {model.get_submodule(a): model.get_submodule(b) for a, b in found.items()}


def _quantized(module: nn.Module, own: LayerPlan, how: Quantization, signed: bool) -> QuantLayer:
    """A quantized layer that shares a float one's parameters and hooks."""
    form = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    layer = form.from_float(
        module, own.precisions, how.quantizer, signed, how.options, how.width_affine
    )
    layer.gradient_bits = how.gradient_bits
    if own.winograd is not None:
        layer.use_winograd(own.winograd)
    # Not copies, so that their handles still remove them.
    hooks = {k: v for k, v in vars(module).items() if "_hook" in k and "state_dict" not in k}
    vars(layer).update(hooks)
    return layer
