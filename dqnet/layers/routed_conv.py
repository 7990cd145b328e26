"""The convolution in which every image runs at the width chosen for it.

The textbook form is ``y = Σ_k choice[:, k] · conv(Q_k(x), Q_k(w)) + bias``: K forward passes, K
input gradients and K weight gradients, most of them multiplied by zero. With a one-hot choice the
same values and the same gradients follow from

* one forward pass, one input gradient and one weight gradient, each image at its own width;
* for the gradient to ``choice[n, k]``, the inner product of the output's gradient with
  ``conv(Q_k(x_n), Q_k(w))``: one more forward pass for each width that was not chosen. For the
  chosen one it needs none, because a convolution and its input gradient are adjoint:
  ``⟨dy, conv(q, w)⟩ = ⟨convᵀ(dy, w), q⟩``.

That is K + 2 passes instead of 3K, and only the layer's input is kept for the backward pass.
Quantized inputs are computed again there, which costs less than keeping them.

The sampled form spares all but one of the passes for widths that were not chosen. Of each image it
draws one such width j, uniformly, and estimates the gradient g to its choice as

    g_c for every width, and (K − 1) · (g_j − g_c) more for width j,

where c is the chosen width: the Horvitz-Thompson estimator (1952) with g_c, which is known, as
control variate. It is unbiased, and its variance is that of the differences g_k − g_c, which are
small where widths answer alike; a constant added to all of g does not change the controller's
gradient. That is 4 passes, whatever K is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.layers.groups import Groups
from dqnet.quantizers import Quantizer
from dqnet.quantizers.precision import HALF


@dataclass(frozen=True)
class ConvGeometry:
    """Where the taps of a convolution fall.

    Attributes:
        same: output size ``ceil(input / stride)``, zeros added as needed, the odd one at the
            right and at the bottom (PyTorch's and TensorFlow's "same"); ``padding`` is then 0.
        repeated: how far the input is repeated at its left, right, top and bottom, as
            ``repeat_mode`` says; empty where padding is zeros. ``padding`` is then 0.
        repeat_mode: ``F.pad``'s name of it.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    same: bool = False
    repeated: tuple[int, ...] = ()
    repeat_mode: str = "reflect"

    def repeat(self, x: Tensor) -> Tensor:
        """The input with its repeated margins; itself where padding is zeros."""
        return F.pad(x, self.repeated, mode=self.repeat_mode) if self.repeated else x

    def repeat_backward(self, grad: Tensor, like: Tensor) -> Tensor:
        """The gradient to ``x`` of :meth:`repeat`, a linear map; ``like`` has the shape of x."""
        if not self.repeated:
            return grad
        with torch.enable_grad():
            x = torch.empty_like(like).requires_grad_()
            return torch.autograd.grad(self.repeat(x), x, grad)[0]

    def _margins(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Left, right, top and bottom zeros of the "same" form."""
        margins = []
        for axis in (1, 0):
            size, stride = x.shape[axis - 2], self.stride[axis]
            reach = (weight.shape[axis - 2] - 1) * self.dilation[axis] + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            margins += [total // 2, total - total // 2]
        return tuple(margins)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.same:
            x = F.pad(x, self._margins(x, weight))
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients to ``x`` and to ``weight``, those that are needed."""
        shape = x.shape
        if self.same:
            left, _, top, _ = margins = self._margins(x, weight)
            x = F.pad(x, margins)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0),
            self.groups, (need_x, need_weight, False),
        )  # fmt: skip
        if self.same and need_x:
            grad_x = grad_x[..., top : top + shape[-2], left : left + shape[-1]]
        return grad_x, grad_weight


class _RoutedConv2d(torch.autograd.Function):
    """The batch is sorted by width first, so that every group is a view and is copied once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        choice: Tensor | None,
        bias: Tensor | None,
        gain: Tensor | None,
        groups: Groups,
        alternatives: Groups | None,
        geometry: ConvGeometry,
        quantizer: Quantizer,
        *weights_and_parameters: Tensor,
    ) -> Tensor:
        # The quantizer reads its own parameters. They are arguments so that autograd asks for
        # their gradients, and saved so that it notices if they change before the backward pass.
        weights = weights_and_parameters[: len(quantizer.widths)]
        ctx.parameters = weights_and_parameters[len(weights) :]
        # A bias that every width shares is no reason to choose one, so it is not needed again.
        own_bias = bias is not None and bias.dim() == 2
        ctx.save_for_backward(x, bias if own_bias else None, gain, *weights_and_parameters)
        ctx.parts = groups, alternatives, geometry, quantizer
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
                scale = _encode(quantizer, ordered[rows], k, buffer[rows], as_codes)
                weight = _scaled(weights[k], gain, k, scale)
                codes = geometry.repeat(buffer[rows])
                parts.append(geometry.forward(codes, weight, _bias_of(bias, k)))
        if not parts:  # an empty batch
            return geometry.forward(geometry.repeat(x), weights[0], _bias_of(bias, 0))
        return groups.unsort(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        groups, alternatives, geometry, quantizer = ctx.parts
        quantizer = quantizer.with_input_parameters(ctx.parameters)
        x, own_bias, gain, *weights = ctx.saved_tensors
        weights = weights[: len(quantizer.widths)]
        need_x, need_choice, need_bias, need_gain = ctx.needs_input_grad[:4]
        need_weights = ctx.needs_input_grad[8 : 8 + len(weights)]
        need_parameters = ctx.needs_input_grad[8 + len(weights) :]
        need_input = need_x or any(need_parameters)
        need_every_width = need_choice and alternatives is None

        ordered, ordered_grad = groups.sort(x), groups.sort(grad)
        buffer = torch.empty_like(ordered)
        grad_x = torch.empty_like(ordered) if need_input else None  # sorted, too
        grad_weights = _zeros_where(need_weights, weights)
        grad_parameters = _zeros_where(need_parameters, quantizer.input_parameters())
        grad_choice = grad.new_zeros(len(x), len(weights)) if need_choice else None
        grad_gain = torch.zeros_like(gain) if need_gain else None
        for k, (start, end) in enumerate(groups.bounds):
            own = slice(start, end)
            # For the choice's exact gradient every image is needed at every width.
            rows = slice(0, len(x)) if need_every_width else own
            if rows.start == rows.stop:
                continue
            scale = _encode(quantizer, ordered[rows], k, buffer[rows], ctx.as_codes)
            weight = _scaled(weights[k], gain, k, 1.0)
            if end > start:
                codes = geometry.repeat(buffer[own])
                grad_quantized, grad_weight = geometry.backward(
                    ordered_grad[own], codes, weight, need_input or need_choice,
                    need_weights[k] or need_gain,
                )  # fmt: skip
                if need_gain:
                    grad_gain[k] = (grad_weight * weights[k]).sum((1, 2, 3)) * scale
                if need_weights[k]:
                    grad_weights[k] = _scaled(grad_weight, gain, k, scale)
                if need_choice:
                    grad_choice[own, k] = _inner(grad_quantized, codes).mul_(scale)
                if need_input:
                    grad_quantized = geometry.repeat_backward(grad_quantized, ordered[own])
                    grads = _input_gradients(
                        quantizer, grad_quantized, ordered[own], k, grad_x[own]
                    )
                    for i, one in enumerate(grads):
                        if grad_parameters[i] is not None:
                            grad_parameters[i] += one
            if need_every_width:
                for other in (slice(0, start), slice(end, len(x))):
                    if other.start < other.stop:
                        y = geometry.forward(geometry.repeat(buffer[other]), weight)
                        grad_choice[other, k] = _inner(ordered_grad[other], y).mul_(scale)

        grad_x = groups.unsort([grad_x]) if need_x else None
        if need_choice:
            grad_choice = groups.unsort([grad_choice])
            if alternatives is not None:
                _estimate_others(
                    grad_choice, grad, x, weights, gain, alternatives, geometry, quantizer
                )
        grad_bias = None
        if need_bias or own_bias is not None:
            per_image = grad.sum((2, 3))
            grad_bias = per_image.sum(0)
            if own_bias is not None:
                if need_choice:
                    grad_choice += per_image.to(own_bias.dtype) @ own_bias.t()
                ends = [end for _, end in groups.bounds[:-1]]
                parts = groups.sort(per_image).tensor_split(ends)
                grad_bias = torch.stack([part.sum(0) for part in parts])
        if need_choice:
            grad_choice = grad_choice.to(ctx.choice_dtype)
        return (
            grad_x, grad_choice, grad_bias, grad_gain, None, None, None, None,
            *grad_weights, *grad_parameters,
        )  # fmt: skip


def _estimate_others(
    grad_choice: Tensor,
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    gain: Tensor | None,
    alternatives: Groups,
    geometry: ConvGeometry,
    quantizer: Quantizer,
) -> None:
    """Fills ``grad_choice [N, K]``, zero but for the chosen widths, with the sampled estimate."""
    chosen = grad_choice.sum(1)
    buffer = alternatives.sort(x)
    buffer = buffer.clone() if buffer is x else buffer
    ordered_grad = alternatives.sort(grad)
    drawn = torch.zeros_like(grad_choice)  # sorted by alternative
    for k, (start, end) in enumerate(alternatives.bounds):
        if end > start:
            rows = slice(start, end)
            scale = _encode(quantizer, buffer[rows], k, buffer[rows], as_codes=True)
            y = geometry.forward(geometry.repeat(buffer[rows]), _scaled(weights[k], gain, k, 1.0))
            drawn[rows, k] = _inner(ordered_grad[rows], y).mul_(scale)
    drawn = alternatives.unsort([drawn])
    is_drawn = torch.zeros_like(drawn)
    for k, (start, end) in enumerate(alternatives.bounds):
        is_drawn[alternatives.order[start:end], k] = 1
    scale = len(weights) - 1
    grad_choice.copy_(chosen[:, None] + is_drawn * scale * (drawn - chosen[:, None]))


def _scaled(weight: Tensor, gain: Tensor | None, k: int, scale: Tensor | float) -> Tensor:
    """The weight at width k, its channels multiplied by ``gain[k]`` and all of it by ``scale``."""
    if gain is not None:
        scale = (gain[k] * scale).view(-1, 1, 1, 1).to(weight.dtype)
    elif isinstance(scale, float) and scale == 1:
        return weight
    return weight * scale


def _bias_of(bias: Tensor | None, k: int) -> Tensor | None:
    return bias if bias is None or bias.dim() == 1 else bias[k]


def _zeros_where(needed: tuple[bool, ...], tensors: list[Tensor]) -> list[Tensor | None]:
    pairs = zip(needed, tensors, strict=True)
    return [torch.zeros_like(tensor) if need else None for need, tensor in pairs]


def _encode(quantizer: Quantizer, x: Tensor, k: int, out: Tensor, as_codes: bool) -> Tensor | float:
    """Writes Q_k(x) = s · codes to ``out``, which may be ``x``, or the codes alone; returns s.

    Where the values themselves were written, s is 1.
    """
    width = quantizer.widths[k]
    if x.dtype in HALF:  # codes are written in place, and half precision does not hold them
        wide = x.float()
        out.copy_(wide.mul_(quantizer.codes_into(wide, width, wide)))
        return 1.0
    scale = quantizer.codes_into(x, width, out)
    if as_codes:
        return scale
    out.mul_(scale)
    return 1.0


def _input_gradients(
    quantizer: Quantizer, grad: Tensor, x: Tensor, k: int, out: Tensor
) -> list[Tensor]:
    """Writes the gradient to ``x``, and returns those to the quantizer's parameters."""
    width = quantizer.widths[k]
    if x.dtype not in HALF:
        return quantizer.input_gradients(grad, x, width, out)
    wide = grad.float()
    grads = quantizer.input_gradients(wide, x.float(), width, wide)
    out.copy_(wide)
    return grads


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products image by image: ``[N, C, H, W]`` twice to ``[N]``."""
    if a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # so that flattening copies nothing
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def routed_conv2d(
    x: Tensor,
    choice: Tensor | None,
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    groups: Groups,
    geometry: ConvGeometry,
    quantizer: Quantizer,
    alternatives: Groups | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """Σ_k choice[:, k] · (gain[k] · conv(Q_k(x), weights[k]) + bias[k]), one width per image.

    Args:
        x: ``[N, C, H, W]``, not yet quantized.
        choice: one-hot ``[N, K]``; ``None`` where K is 1.
        weights: K quantized weights ``[O, C / groups, kH, kW]``.
        bias: ``[O]``, the same at every width, ``[K, O]`` or ``None``.
        groups: the groups of ``choice``.
        geometry: stride, padding, dilation and channel groups.
        quantizer: quantizes ``x``.
        alternatives: for the sampled form of the choice's gradient, the drawn widths; ``None``
            for the exact form.
        gain: ``[K, O]``, or ``None`` for ones.

    Returns:
        ``[N, O, H', W']``; differentiable once in ``x``, ``choice``, ``weights``, ``bias``,
        ``gain`` and the quantizer's input parameters.
    """
    return _RoutedConv2d.apply(
        x,
        choice,
        bias,
        gain,
        groups,
        alternatives,
        geometry,
        quantizer,
        *weights,
        *quantizer.input_parameters(),
    )
