"""DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients.

Zhou et al., 2016, https://arxiv.org/abs/1606.06160. Weights: eq. 7 (one bit) and eq. 9;
activations: eq. 10; gradients: the straight-through estimator, eq. 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes, evenly_spaced
from dqnet.quantizers.half import widened
from dqnet.quantizers.one_pass import pass_inside


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


class _RoundScaled(torch.autograd.Function):
    """2 · Q(tanh w / (2 · max|tanh w|) + ½) − 1 at several widths (eq. 9).

    Everything before the rounding is the same for every width and computed once. Passes over
    memory are what it costs, and only w is kept. Behind the rounding stands what integer codes
    mean, (code − z) · Δ with z = (2ᵇ − 1)/2, whose one rounding is the same on every device.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight)
        squashed = weight.tanh()
        unit = squashed.div_(2 * _largest(squashed)).add_(0.5)
        quantized = []
        for width in widths:
            levels = 2**width - 1
            codes = (unit * levels).round_()
            quantized.append(codes.sub_(levels / 2).mul_(2 / levels))
        return tuple(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        grad = grads[0] + grads[1] if len(grads) > 1 else grads[0].clone()
        for other in grads[2:]:
            grad += other
        squashed = weight.tanh()
        largest = _largest(squashed)
        normal = squashed / largest
        # Not divided by the square of the largest, which is zero for a weight below 1e-23.
        grad_largest = -(grad * normal).sum() / largest
        # The largest element is in every element's denominator; equal ones share that gradient.
        # Divided by the largest, they alone are 1 or -1.
        sign_of_top = normal.trunc_()
        share = grad_largest / sign_of_top.abs().sum().clamp_min(1)
        grad.div_(largest).addcmul_(sign_of_top, share)
        return torch.ops.aten.tanh_backward(grad, squashed, grad_input=grad), None


def _largest(squashed: Tensor) -> Tensor:
    """max|tanh w|; 1 for an all-zero weight, which is then divided by something finite."""
    low, high = squashed.aminmax()
    largest = torch.maximum(high, -low)
    return torch.where(largest == 0, 1, largest)  # NaN stays NaN


class _ClipAndRound(torch.autograd.Function):
    """Q(clip(x, 0, 1)), or its signed form on [-1, 1]; the gradient is that of the clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.signed = signed
        codes = torch.empty_like(x)
        return codes.mul_(_codes_into(x, levels, signed, codes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return pass_inside(grad, x, -int(ctx.signed), 1, torch.empty_like(grad)), None, None


def _codes_into(x: Tensor, levels: int, signed: bool, out: Tensor) -> float:
    """Writes the codes 0 … levels, or −levels/2 … levels/2, and returns their scale."""
    if not signed:
        torch.clamp(x, 0, 1, out=out).mul_(levels).round_()
        return 1 / levels
    half = levels / 2
    torch.clamp(x, -1, 1, out=out).add_(1).mul_(half).round_().sub_(half)
    return 1 / half


def dorefa_weight(weight: Tensor, width: int) -> Tensor:
    """2 · Q(tanh w / (2 · max|tanh w|) + ½) − 1; at one bit sign(w) · mean|w|.

    Args:
        weight: any shape; the maximum and the mean are over the whole tensor.
        width: bits, 1 to 16.

    Returns:
        A tensor of the same shape and type: ``2**width`` values in [-1, 1], at one bit ±mean|w|.
    """
    wide = widened(weight)
    quantized = _SignTimesMean.apply(wide) if width == 1 else _RoundScaled.apply(wide, (width,))[0]
    return quantized.to(weight.dtype)


def dorefa_activation(x: Tensor, width: int, signed: bool = False) -> Tensor:
    """Q(clip(x, 0, 1)), ``2**width`` values in [0, 1].

    The signed form uses the map that the paper uses for weights: 2 · Q(clip(x, −1, 1)/2 + ½) − 1.
    """
    return _ClipAndRound.apply(widened(x), 2**width - 1, signed).to(x.dtype)


class DoReFaWeight(Quantizer, name="dorefa", of="weight"):
    """DoReFa's weights; it has no parameters."""

    rescales = True

    def forward(self, x: Tensor, k: int) -> Tensor:
        return dorefa_weight(x, self.formats[k].bits)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        levels = 2 ** self.formats[k].bits - 1
        quantized = widened(self(x, k))
        top = 1.0 if levels > 1 else widened(x).abs().mean().item()
        scale = quantized.new_tensor(2 * top / levels)
        zero_point = scale.new_tensor(levels / 2)
        codes = (quantized / scale + zero_point).round().clamp(0, levels)
        return Codes(codes.to(torch.int32), scale, zero_point)

    def all_formats(self, x: Tensor) -> tuple[Tensor, ...]:
        wide, widths = widened(x), tuple(f.bits for f in self.formats)
        several = tuple(width for width in widths if width > 1)
        rounded = _RoundScaled.apply(wide, several) if several else ()
        quantized = dict(zip(several, rounded, strict=True))
        if 1 in widths:
            quantized[1] = _SignTimesMean.apply(wide)
        return tuple(quantized[width].to(x.dtype) for width in widths)


class DoReFaInput(Quantizer, name="dorefa", of="input"):
    """DoReFa's activations; it has no parameters."""

    def forward(self, x: Tensor, k: int) -> Tensor:
        return dorefa_activation(x, self.formats[k].bits, self.signed)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        levels = 2 ** self.formats[k].bits - 1
        low = -1.0 if self.signed else 0.0
        one = torch.ones((), device=x.device)
        return evenly_spaced(widened(self(x, k)), low * one, (1 - low) / levels * one, levels)

    def codes_into(self, x: Tensor, k: int, out: Tensor) -> float:
        return _codes_into(x, 2 ** self.formats[k].bits - 1, self.signed, out)

    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        pass_inside(grad, x, -int(self.signed), 1, out)
        return []
