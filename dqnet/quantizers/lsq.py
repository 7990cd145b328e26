"""LSQ: Learned Step Size Quantization.

Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153. Quantizer: eqs. 1 and 2; gradients: eqs.
3 and 5; gradient scale: section 2.2; initialisation: section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes, evenly_spaced
from dqnet.quantizers.half import widened
from dqnet.quantizers.one_pass import dot

#: A step is a scale and has to stay above zero, wherever the optimizer takes it.
SMALLEST_STEP = 1e-8


def lsq_range(width: int, signed: bool) -> tuple[int, int]:
    """(Q_N, Q_P): codes go from −Q_N to Q_P.

    The paper's signed form has Q_P = 0 at one bit, where a step could only make a tensor negative;
    one signed bit is therefore binary, ±step, which is (1, 1) with nothing in between.
    """
    if not signed:
        return 0, 2**width - 1
    if width == 1:
        return 1, 1
    return 2 ** (width - 1), 2 ** (width - 1) - 1


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, v: Tensor, step: Tensor, width: int, signed: bool, grad_scale: float
    ) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.format = width, signed
        ctx.grad_scale = grad_scale
        step = step.clamp_min(SMALLEST_STEP)
        low, high = lsq_range(width, signed)
        return _codes_(v / step, low, high, width == 1 and signed).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        v, step = ctx.saved_tensors
        grad_v = torch.empty_like(grad)
        grad_step = _gradients(grad, v, step, *ctx.format, grad_v)
        return grad_v, grad_step * ctx.grad_scale, None, None, None


def _gradients(
    grad: Tensor, v: Tensor, step: Tensor, width: int, signed: bool, out: Tensor
) -> Tensor:
    """Writes the gradient to v to ``out``, which may be ``grad``; returns that to the step."""
    low, high = lsq_range(width, signed)
    ratio = v / step.clamp_min(SMALLEST_STEP)
    # Eq. 3: round(v/s) − v/s inside the open interval, −Q_N or Q_P outside. What hard tanh hands
    # on of a tensor, as if it were a gradient, is that tensor inside and zero outside.
    slope = _codes_(ratio.clone(), low, high, width == 1 and signed)
    slope -= torch.ops.aten.hardtanh_backward(ratio, ratio, -low, high)
    grad_step = dot(grad, slope)
    torch.ops.aten.hardtanh_backward(grad, ratio, -low, high, grad_input=out)
    return grad_step


def _codes_(ratio: Tensor, low: int, high: int, binary: bool) -> Tensor:
    """The integer codes of v/s, computed in place."""
    if binary:
        unknown = ratio.isnan()  # which compares as below zero
        return ratio.ge_(0).mul_(2).sub_(1).masked_fill_(unknown, math.nan)
    return ratio.clamp_(-low, high).round_()


def lsq(
    v: Tensor, step: Tensor, width: int, signed: bool = False, grad_scale: float = 1.0
) -> Tensor:
    """round(clip(v/s, −Q_N, Q_P)) · s.

    Args:
        v: any shape.
        step: s, a scalar tensor above 0.
        width: bits, 1 to 16.
        signed: codes −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1 instead of 0 … 2ᵇ − 1 (one bit: ±1).
        grad_scale: g, by which the gradient to the step is multiplied.

    Returns:
        A tensor of the shape of ``v``.
    """
    return _LearnedStep.apply(widened(v), widened(step), width, signed, grad_scale).to(v.dtype)


def initial_step(mean: Tensor, width: int, signed: bool) -> Tensor:
    """2 · mean|v| / √Q_P, a scalar; 1 for an all-zero tensor, which any step represents.

    Args:
        mean: mean|v|, a scalar tensor.
        width: bits, 1 to 16.
        signed: whether v can be negative.
    """
    step = 2 * mean / math.sqrt(lsq_range(width, signed)[1])
    return torch.where(step > SMALLEST_STEP, step, torch.ones_like(step))


class LSQ(Quantizer):
    """A learned step for each format, initialised from mean|v| of what was observed."""

    def __init__(self, formats: Sequence[Format], **options: Any) -> None:
        super().__init__(formats, **options)
        self.step = nn.Parameter(torch.ones(len(self.formats)))
        self._mean: Tensor | None = None  # of the finite magnitudes seen so far
        self._count = 0

    def features(self, x: Tensor) -> int:
        """N of section 2.2, which the gradient to the step is divided by the root of."""
        raise NotImplementedError

    def _scale(self, x: Tensor, k: int) -> float:
        """g of section 2.2, by which the gradient to the step is multiplied."""
        return 1 / math.sqrt(self.features(x) * lsq_range(self.formats[k].bits, self.signed)[1])

    def forward(self, x: Tensor, k: int) -> Tensor:
        width = self.formats[k].bits
        return lsq(x, self.step[k], width, self.signed, self._scale(x, k))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        magnitude = widened(x).abs()
        finite = magnitude.isfinite()
        if not finite.all():  # one NaN would make every later output NaN
            magnitude = magnitude[finite]
        if not magnitude.numel():
            return
        mean = magnitude.mean().clamp_max(torch.finfo(x.dtype).max)
        self._count += magnitude.numel()
        if self._mean is None:
            self._mean = mean
        else:
            self._mean = self._mean + (mean - self._mean) * (magnitude.numel() / self._count)

    @torch.no_grad()
    def finish(self) -> None:
        if self._mean is not None:
            for k, own in enumerate(self.formats):
                step = initial_step(self._mean, own.bits, self.signed)
                self.step[k] = step.clamp_max(torch.finfo(self.step.dtype).max)
        self._mean, self._count = None, 0

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        width, step = self.formats[k].bits, widened(self.step[k]).clamp_min(SMALLEST_STEP)
        low, high = lsq_range(width, self.signed)
        if width == 1 and self.signed:  # −step and step are the codes 0 and 1
            return evenly_spaced(widened(self(x, k)), -step, 2 * step, 1)
        codes = _codes_(widened(x) / step, low, high, False)
        return Codes(codes.to(torch.int32), step, torch.zeros_like(step))

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        step = widened(self.step[k]).clamp_min(SMALLEST_STEP)
        width = self.formats[k].bits
        binary = width == 1 and self.signed
        _codes_(torch.div(x, step, out=out), *lsq_range(width, self.signed), binary)
        return step

    @torch.no_grad()
    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        width, step = self.formats[k].bits, widened(self.step[k])
        grad_step = torch.zeros_like(self.step)
        grad_step[k] = self._scale(x, k) * _gradients(grad, x, step, width, self.signed, out)
        return [grad_step]


class LSQWeight(LSQ, name="lsq", of="weight"):
    """LSQ's weights, N being how many there are."""

    def features(self, x: Tensor) -> int:
        return x.numel()


class LSQInput(LSQ, name="lsq", of="input"):
    """LSQ's activations, N being the features of one image.

    So the scale does not depend on how many images of the batch chose this precision.
    """

    def features(self, x: Tensor) -> int:
        return math.prod(x.shape[1:])
