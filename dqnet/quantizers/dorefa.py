"""DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients.

Zhou et al., 2016, https://arxiv.org/abs/1606.06160. Weights: eq. 7 (one bit) and eq. 9;
activations: eq. 10; gradients: the straight-through estimator, eq. 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqnet.quantizers.base import Quantizer


class _SignTimesMean(torch.autograd.Function):
    """One bit: sign(w) · E|w|, with the gradient passed unchanged (eq. 7)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        # sign(0) is taken as +1: a weight has two values, and zero is neither of them.
        mean = weight.abs().mean()
        return torch.where(weight >= 0, mean, -mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Scale(torch.autograd.Function):
    """tanh(w) / max|tanh w|; it keeps nothing but w, and computes the rest again."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        squashed = weight.tanh()
        return squashed.div_(_largest(squashed))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        squashed = weight.tanh()
        magnitude, largest = squashed.abs(), _largest(squashed)
        # The largest element is in every element's denominator; equal ones share that gradient.
        top = magnitude == largest
        grad_largest = -(grad * squashed).sum() / largest**2
        grad_squashed = grad / largest + grad_largest * squashed.sign() * top / top.sum().clamp_min(
            1
        )
        return grad_squashed.mul_(1 - squashed.square())


def _largest(squashed: Tensor) -> Tensor:
    """max|tanh w|; 1 for an all-zero weight, which is then divided by something finite."""
    largest = squashed.abs().max()
    return torch.where(largest > 0, largest, 1)


class _RoundScaled(torch.autograd.Function):
    """2 · Q(v/2 + ½) − 1 for v in [-1, 1], with the gradient passed unchanged (eqs. 5 and 9)."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, levels: int) -> Tensor:
        unit = (scaled / 2).add_(0.5)
        return unit.mul_(levels).round_().div_(levels).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ClipAndRound(torch.autograd.Function):
    """Q(clip(x, 0, 1)), or its signed form on [-1, 1]; the gradient is that of the clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.signed = signed
        return _clip_and_round(x, levels, signed, torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return _clip_gradient(grad, x, ctx.signed, torch.empty_like(x)), None, None


def _clip_and_round(x: Tensor, levels: int, signed: bool, out: Tensor) -> Tensor:
    if not signed:
        return torch.clamp(x, 0, 1, out=out).mul_(levels).round_().div_(levels)
    half = levels / 2
    return torch.clamp(x, -1, 1, out=out).add_(1).mul_(half).round_().div_(half).sub_(1)


def _clip_gradient(grad: Tensor, x: Tensor, signed: bool, out: Tensor) -> Tensor:
    """``grad`` where x is in the closed interval, else zero; ``out`` may be ``grad``.

    One pass over memory instead of the four of comparisons and masks: the gradient of hardtanh,
    whose interval is open and therefore widened by the smallest step that its type has.
    """
    info = torch.finfo(x.dtype)
    low = -1 - info.eps if signed else -info.tiny * info.eps
    return torch.ops.aten.hardtanh_backward(grad, x, low, 1 + info.eps, grad_input=out)


def dorefa_weight(weight: Tensor, width: int) -> Tensor:
    """2 · Q(tanh w / (2 · max|tanh w|) + ½) − 1; at one bit sign(w) · mean|w|.

    Args:
        weight: any shape; the maximum and the mean are over the whole tensor.
        width: bits, 1 to 16.

    Returns:
        A tensor of the same shape: ``2**width`` values in [-1, 1], at one bit ±mean|w|.
    """
    return DoReFaWeights((width,)).quantize_weight(weight)[0]


def dorefa_activation(x: Tensor, width: int, signed: bool = False) -> Tensor:
    """Q(clip(x, 0, 1)), ``2**width`` values in [0, 1].

    The signed form uses the map that the paper uses for weights: 2 · Q(clip(x, −1, 1)/2 + ½) − 1.
    """
    return _ClipAndRound.apply(x, 2**width - 1, signed)


class DoReFaWeights(Quantizer):
    """DoReFa's weights, which other methods use with activations of their own."""

    def quantize_weight(self, weight: Tensor) -> tuple[Tensor, ...]:
        scaled = None
        quantized = []
        for width in self.widths:
            if width == 1:
                quantized.append(_SignTimesMean.apply(weight))
                continue
            if scaled is None:  # the same for every width, so computed once
                scaled = _Scale.apply(weight)
            quantized.append(_RoundScaled.apply(scaled, 2**width - 1))
        return tuple(quantized)


class DoReFa(DoReFaWeights, name="dorefa"):
    """DoReFa's weights and activations; it has no parameters."""

    def quantize_input(self, x: Tensor, width: int) -> Tensor:
        return dorefa_activation(x, width, self.signed)

    def quantize_into(self, x: Tensor, width: int, out: Tensor) -> Tensor:
        return _clip_and_round(x, 2**width - 1, self.signed, out)

    def input_gradients(self, grad: Tensor, x: Tensor, width: int) -> tuple[Tensor, list[Tensor]]:
        return _clip_gradient(grad, x, self.signed, grad), []
