"""The linear map in which every image runs at the precision chosen for it.

The textbook form is ``y = Σ_k choice[:, k] · conv(Q_k(x), Q_k(w)) + bias``: K forward passes, K
input gradients and K weight gradients, most of them multiplied by zero. With a one-hot choice the
same values and the same gradients follow from

* one forward pass, one input gradient and one weight gradient, each image at its own precision;
* for the gradient to ``choice[n, k]``, the inner product of the output's gradient with
  ``conv(Q_k(x_n), Q_k(w))``: one more forward pass for each precision that was not chosen. For the
  chosen one it needs none, because a linear map and its input gradient are adjoint:
  ``⟨dy, conv(q, w)⟩ = ⟨convᵀ(dy, w), q⟩``.

That is K + 2 passes instead of 3K, and only the layer's input is kept for the backward pass.
Quantized inputs are computed again there, which costs less than keeping them. The form that spares
all but one of the passes for precisions that were not chosen is in :mod:`dqnet.layers.sampled`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqnet.errors import UserError
from dqnet.layers.geometry import Geometry
from dqnet.layers.input_codes import InputCodes
from dqnet.layers.products import inner, scaled
from dqnet.layers.sampled import estimate_others
from dqnet.layers.width_groups import WidthGroups


class Pass(NamedTuple):
    """What a forward pass of a layer hands to its backward pass, tensors apart."""

    groups: WidthGroups
    drawn_widths: WidthGroups | None
    geometry: Geometry
    inputs: InputCodes


class Needs(NamedTuple):
    """Which gradients are wanted; the order of the function's arguments."""

    x: bool
    choice: bool
    bias: bool
    gain: bool
    weights: tuple[bool, ...]
    parameters: tuple[bool, ...]

    @classmethod
    def of(cls, needed: tuple[bool, ...], weights: int) -> Needs:
        x, choice, bias, gain, _, *rest = needed
        return cls(x, choice, bias, gain, tuple(rest[:weights]), tuple(rest[weights:]))

    @property
    def input(self) -> bool:
        """Whether the gradient to the quantized input is wanted."""
        return self.x or any(self.parameters)


class _Routed(torch.autograd.Function):
    """The batch is sorted by precision first, so that every group is a view and is copied once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        choice: Tensor | None,
        bias: Tensor | None,
        gain: Tensor | None,
        own: Pass,
        *weights_and_parameters: Tensor,
    ) -> Tensor:
        groups, _, geometry, inputs = ctx.own = own
        # The quantizer reads its own parameters. They are arguments so that autograd asks for
        # their gradients, and saved so that it notices if they change before the backward pass.
        weights = weights_and_parameters[: len(inputs.formats)]
        ctx.parameters = weights_and_parameters[len(weights) :]
        # A bias that every precision shares is not a reason to choose one, so it is not needed
        # again.
        own_bias = bias is not None and bias.dim() == 2
        ctx.save_for_backward(x, bias if own_bias else None, gain, *weights_and_parameters)
        ctx.choice_dtype = None if choice is None else choice.dtype

        # Codes spare a pass over every input for one over every weight: worth it where inputs
        # are larger.
        ctx.as_codes = as_codes = x.numel() > weights[0].numel() * len(weights)
        ordered = groups.sort(x)
        buffer = torch.empty_like(x) if ordered is x else ordered  # x is not ours to overwrite
        parts = []
        for k, (start, end) in enumerate(groups.bounds):
            if end > start:
                rows = slice(start, end)
                scale = inputs.write(ordered[rows], k, buffer[rows], as_codes)
                weight = scaled(weights[k], gain, k, scale)
                codes = geometry.repeat(buffer[rows])
                parts.append(geometry.forward(codes, weight, _bias_of(bias, k)))
        if not parts:  # an empty batch
            return geometry.forward(geometry.repeat(x), weights[0], _bias_of(bias, 0))
        return groups.unsort(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        groups, drawn_widths, geometry, inputs = ctx.own
        _check_parameters(inputs, ctx.parameters)
        x, own_bias, gain, *weights = ctx.saved_tensors
        weights = weights[: len(inputs.formats)]
        need = Needs.of(ctx.needs_input_grad, len(weights))
        need_every_width = need.choice and drawn_widths is None

        ordered, ordered_grad = groups.sort(x), groups.sort(grad)
        buffer = torch.empty_like(ordered)
        grad_x = torch.empty_like(ordered) if need.input else None  # sorted, too
        grad_weights = _zeros_where(need.weights, weights)
        grad_parameters = _zeros_where(need.parameters, inputs.parameters)
        grad_choice = grad.new_zeros(len(x), len(weights)) if need.choice else None
        grad_gain = torch.zeros_like(gain) if need.gain else None
        for k, (start, end) in enumerate(groups.bounds):
            own = slice(start, end)
            # For the choice's exact gradient every image is needed at every precision.
            rows = slice(0, len(x)) if need_every_width else own
            if rows.start == rows.stop:
                continue
            scale = inputs.write(ordered[rows], k, buffer[rows], ctx.as_codes)
            weight = scaled(weights[k], gain, k, 1.0)
            if end > start:
                codes = geometry.repeat(buffer[own])
                grad_quantized, grad_weight = geometry.backward(
                    ordered_grad[own], codes, weight, need.input or need.choice,
                    need.weights[k] or need.gain,
                )  # fmt: skip
                if need.gain:
                    axes = tuple(range(1, grad_weight.dim()))
                    grad_gain[k] = (grad_weight * weights[k]).sum(axes) * scale
                if need.weights[k]:
                    grad_weights[k] = scaled(grad_weight, gain, k, scale)
                if need.choice:
                    grad_choice[own, k] = inner(grad_quantized, codes).mul_(scale)
                if need.input:
                    grad_quantized = geometry.repeat_backward(grad_quantized, ordered[own])
                    grads = inputs.gradients(grad_quantized, ordered[own], k, grad_x[own])
                    for total, one in zip(grad_parameters, grads, strict=True):
                        if total is not None:
                            total += one
            if need_every_width:
                for other in (slice(0, start), slice(end, len(x))):
                    if other.start < other.stop:
                        y = geometry.forward(geometry.repeat(buffer[other]), weight)
                        grad_choice[other, k] = inner(ordered_grad[other], y).mul_(scale)

        grad_x = groups.unsort([grad_x]) if need.x else None
        if need.choice:
            grad_choice = groups.unsort([grad_choice])
            if drawn_widths is not None:
                estimate_others(grad_choice, grad, x, weights, gain, drawn_widths, geometry, inputs)
        grad_bias = None
        if need.bias or own_bias is not None:
            per_image = geometry.sum_positions(grad)
            grad_bias = per_image.sum(0)
            if own_bias is not None:
                if need.choice:
                    grad_choice += per_image.to(own_bias.dtype) @ own_bias.t()
                ends = [end for _, end in groups.bounds[:-1]]
                parts = groups.sort(per_image).tensor_split(ends)
                grad_bias = torch.stack([part.sum(0) for part in parts])
        if need.choice:
            grad_choice = grad_choice.to(ctx.choice_dtype)
        return grad_x, grad_choice, grad_bias, grad_gain, None, *grad_weights, *grad_parameters


def _check_parameters(inputs: InputCodes, forward: tuple[Tensor, ...]) -> None:
    """Raises UserError if the quantizer has other parameters than in the forward pass."""
    if not all(a is b for a, b in zip(inputs.parameters, forward, strict=True)):
        raise UserError(
            "a quantizer's parameters were others in the forward pass "
            "(torch.func.functional_call does that): load them into the layer instead"
        )


def _bias_of(bias: Tensor | None, k: int) -> Tensor | None:
    return bias if bias is None or bias.dim() == 1 else bias[k]


def _zeros_where(needed: tuple[bool, ...], tensors: list[Tensor]) -> list[Tensor | None]:
    pairs = zip(needed, tensors, strict=True)
    return [torch.zeros_like(tensor) if need else None for need, tensor in pairs]


def routed(
    x: Tensor,
    choice: Tensor | None,
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    own: Pass,
    gain: Tensor | None = None,
) -> Tensor:
    """Σ_k choice[:, k] · (gain[k] · map(Q_k(x), weights[k]) + bias[k]), one precision per image.

    Args:
        x: ``[N, ...]``, not yet quantized.
        choice: one-hot ``[N, K]``; ``None`` where K is 1.
        weights: K quantized weights ``[O, ...]``.
        bias: ``[O]``, the same at every precision, ``[K, O]`` or ``None``.
        own: groups of ``choice``; for the sampled form of the choice's gradient also of the drawn
            precisions; the map; and what quantizes ``x``.
        gain: ``[K, O]``, or ``None`` for ones.

    Returns:
        The map's output; differentiable once in ``x``, ``choice``, ``weights``, ``bias``,
        ``gain`` and the parameters of the input's quantizer.
    """
    return _Routed.apply(x, choice, bias, gain, own, *weights, *own.inputs.parameters)
