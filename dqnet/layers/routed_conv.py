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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.layers.groups import Groups
from dqnet.quantizers import Quantizer


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
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        choice: Tensor | None,
        bias: Tensor | None,
        groups: Groups,
        geometry: ConvGeometry,
        quantizer: Quantizer,
        *weights_and_parameters: Tensor,
    ) -> Tensor:
        # The quantizer reads its own parameters. They are arguments so that autograd asks for
        # their gradients, and kept so that it notices if they change before the backward pass.
        weights = weights_and_parameters[: len(quantizer.widths)]
        ctx.save_for_backward(x, *weights_and_parameters)
        ctx.parts = groups, geometry, quantizer
        ctx.has_bias = bias is not None
        if choice is not None:
            ctx.choice_dtype = choice.dtype

        y = None
        for k, index in groups:
            part = _quantize(quantizer, geometry, _take(x, index), k)
            part = geometry.forward(part, weights[k], bias)
            if len(part) == len(x):
                return part
            if y is None:
                y = part.new_empty((len(x), *part.shape[1:]))
            y.index_copy_(0, index, part)
        if y is None:  # an empty batch
            y = geometry.forward(geometry.repeat(x), weights[0], bias)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        groups, geometry, quantizer = ctx.parts
        x, *weights = ctx.saved_tensors
        weights = weights[: len(quantizer.widths)]
        need_parameters = ctx.needs_input_grad[6 + len(weights) :]
        parameters = [
            p for p, need in zip(quantizer.input_parameters(), need_parameters, strict=True) if need
        ]
        need_x, need_choice, need_bias = ctx.needs_input_grad[:3]
        need_weights = ctx.needs_input_grad[6 : 6 + len(weights)]
        need_input = need_x or need_choice or bool(parameters)

        grad_x = torch.empty_like(x) if need_x else None
        grad_weights: list[Tensor | None] = [None] * len(weights)
        grad_parameters = [torch.zeros_like(p) for p in parameters]
        grad_choice = grad.new_zeros(len(x), len(weights)) if need_choice else None
        for k, index in groups:
            grad_part = _take(grad, index)
            with torch.enable_grad():
                part = _take(x, index).detach().requires_grad_()
                quantized = _quantize(quantizer, geometry, part, k)
            grad_quantized, grad_weights[k] = geometry.backward(
                grad_part, quantized.detach(), weights[k], need_input, need_weights[k]
            )
            if need_choice:
                grad_choice[index, k] = _inner(grad_quantized, quantized.detach())
            if need_x or parameters:
                # A parameter of one width is not used at the others: its gradient is zero there.
                grad_part, *grads = torch.autograd.grad(
                    quantized, [part, *parameters], grad_quantized, materialize_grads=True
                )
                if need_x and len(grad_part) == len(x):
                    grad_x = grad_part
                elif need_x:
                    grad_x.index_copy_(0, index, grad_part)
                for total, one in zip(grad_parameters, grads, strict=True):
                    total += one
        if need_choice:
            for k, weight in enumerate(weights):
                index = groups.others(k)
                if len(index):
                    part = _quantize(quantizer, geometry, _take(x, index), k)
                    y = geometry.forward(part, weight)
                    grad_choice[index, k] = _inner(_take(grad, index), y)
            grad_choice = grad_choice.to(ctx.choice_dtype)
        grad_bias = grad.sum((0, 2, 3)) if need_bias and ctx.has_bias else None
        grads = iter(grad_parameters)
        return (
            grad_x, grad_choice, grad_bias, None, None, None,
            *(
                torch.zeros_like(w) if g is None and need else g
                for g, w, need in zip(grad_weights, weights, need_weights, strict=True)
            ),
            *(next(grads) if need else None for need in need_parameters),
        )  # fmt: skip


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x if len(index) == len(x) else x.index_select(0, index)


def _quantize(quantizer: Quantizer, geometry: ConvGeometry, x: Tensor, k: int) -> Tensor:
    # Half-precision inputs are quantized in float32: bfloat16 cannot tell 9-bit levels apart.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return geometry.repeat(quantizer.quantize_input(wide, quantizer.widths[k]).to(x.dtype))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products image by image: ``[N, ...]`` twice to ``[N]``."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def routed_conv2d(
    x: Tensor,
    choice: Tensor | None,
    weights: tuple[Tensor, ...],
    bias: Tensor | None,
    groups: Groups,
    geometry: ConvGeometry,
    quantizer: Quantizer,
) -> Tensor:
    """Σ_k choice[:, k] · conv(Q_k(x), weights[k]) + bias, each image at its own width only.

    Args:
        x: ``[N, C, H, W]``, not yet quantized.
        choice: one-hot ``[N, K]``; ``None`` where K is 1.
        weights: K quantized weights ``[O, C / groups, kH, kW]``.
        bias: ``[O]`` or ``None``.
        groups: the groups of ``choice``.
        geometry: stride, padding, dilation and channel groups.
        quantizer: quantizes ``x``.

    Returns:
        ``[N, O, H', W']``; differentiable once in ``x``, ``choice``, ``weights``, ``bias`` and the
        quantizer's input parameters.
    """
    return _RoutedConv2d.apply(
        x, choice, bias, groups, geometry, quantizer, *weights, *quantizer.input_parameters()
    )
