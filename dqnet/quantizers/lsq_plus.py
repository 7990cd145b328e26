"""LSQ+: a learned step and a learned offset, for inputs that are mostly on one side of zero.

Bhalgat et al. 2020, *LSQ+: Improving low-bit quantization through learnable offsets and better
initialization*, https://arxiv.org/abs/2004.09576, section 3: the quantizer, its gradients and its
initialisation. Behind swish or hard-swish values reach just below zero: an unsigned format loses
them, a signed one spends half of its codes on them. Weights are LSQ's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.half import widened
from dqnet.quantizers.lsq import SMALLEST_STEP
from dqnet.quantizers.observers.histogram import Histogram
from dqnet.quantizers.one_pass import finite_values

#: ends of the range that are tried for one that stays, and how often the two take turns
CANDIDATES, ROUNDS = 64, 3


class _LearnedStepAndOffset(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor, top: int, grad_scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, step, offset)
        ctx.top, ctx.grad_scale = top, grad_scale
        step = step.clamp_min(SMALLEST_STEP)
        return _shifted_codes(x, step, offset, top, torch.empty_like(x)).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, step, offset = ctx.saved_tensors
        ratio = (x - offset) / step.clamp_min(SMALLEST_STEP)
        inside = (ratio > 0) & (ratio < ctx.top)
        # round(v) − v inside for v = (x − β)/s, 0 or p outside.
        slope = torch.where(inside, -ratio, 0).add_(ratio.clamp(0, ctx.top).round_())
        grad_step = (grad * slope).sum() * ctx.grad_scale
        grad_x = grad * inside
        # A clipped value moves with the offset, another one stays where it is.
        grad_offset = (grad - grad_x).sum() * ctx.grad_scale
        return grad_x, grad_step, grad_offset, None, None


def _shifted_codes(x: Tensor, step: Tensor, offset: Tensor, top: int, out: Tensor) -> Tensor:
    """Writes code + β/s to ``out``: it times s is the quantized tensor, and 0 is the number zero.

    So a convolution may pad what is written with zeros, although the offset has a code of its own.
    """
    torch.sub(x, offset, out=out)
    return out.div_(step).clamp_(0, top).round_().add_(offset / step)


def lsq_plus(
    x: Tensor, step: Tensor, offset: Tensor, width: int, grad_scale: float = 1.0
) -> Tensor:
    """round(clip((x − β)/s, 0, 2ᵇ − 1)) · s + β.

    Args:
        x: any shape.
        step: s, a scalar tensor above 0.
        offset: β, a scalar tensor: the least value that there is.
        width: bits, 1 to 16.
        grad_scale: g, by which the gradients to step and offset are multiplied.

    Returns:
        A tensor of the shape of ``x``. The gradient to β is that of clipped elements, the one to s
        is LSQ's.
    """
    step, offset = widened(step), widened(offset)
    top = 2**width - 1
    return _LearnedStepAndOffset.apply(widened(x), step, offset, top, grad_scale).to(x.dtype)


def least_error_range(
    values: Tensor, counts: Tensor, low: Tensor, high: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """A range in which quantized values have a small mean squared error.

    The paper minimises it by gradient descent from the whole range. Here the ends take turns: one
    stays, and of ``CANDIDATES`` places for the other one the best is taken.

    Args:
        values, counts: float64 ``[M]``, and how often each was seen.
        low, high: the whole range, two scalars.
        width: bits, 1 to 16.
    """
    top = 2**width - 1
    shares = torch.arange(1, CANDIDATES + 1, device=values.device, dtype=values.dtype) / CANDIDATES

    def best(lows: Tensor, highs: Tensor) -> int:
        step = ((highs - lows) / top).clamp_min(SMALLEST_STEP)[:, None]
        codes = ((values - lows[:, None]) / step).clamp_(0, top).round_()
        error = codes.mul_(step).add_(lows[:, None]).sub_(values).square_().mul_(counts).sum(1)
        return int(error.argmin())

    for _ in range(ROUNDS):
        highs = low + (high - low) * shares
        high = highs[best(low.expand_as(highs), highs)]
        lows = high - (high - low) * shares
        low = lows[best(lows, high.expand_as(lows))]
    return low, high


class LSQPlus(Quantizer, name="lsq_plus", of="input", weights="lsq"):
    """A learned step and offset for each format, initialised from what was observed."""

    def __init__(self, formats: Sequence[Format], **options: Any) -> None:
        super().__init__(formats, **options)
        self.step = nn.Parameter(torch.ones(len(self.formats)))
        self.offset = nn.Parameter(torch.zeros(len(self.formats)))
        self._histogram: Histogram | None = None
        self._ends: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, k: int) -> Tensor:
        width = self.formats[k].bits
        # LSQ's section 2.2, for both: N features of one image, p codes above the first.
        scale = 1 / math.sqrt(math.prod(x.shape[1:]) * (2**width - 1))
        return lsq_plus(x, self.step[k], self.offset[k], width, scale)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        values = finite_values(widened(x))
        if not values.numel():
            return
        low, high = values.aminmax()
        if self._ends is None:
            self._histogram = Histogram(1, values.device)
            self._ends = low, high
        self._histogram.add(values[None])
        self._ends = low.minimum(self._ends[0]), high.maximum(self._ends[1])

    @torch.no_grad()
    def finish(self) -> None:
        if self._ends is None:
            return
        low, high = (end.double() for end in self._ends)
        values, counts = (own[0] for own in self._histogram.values())
        values, counts = values[counts > 0], counts[counts > 0]
        for k, own in enumerate(self.formats):
            bottom, top = low, high
            if bottom < top:
                bottom, top = least_error_range(values, counts, low, high, own.bits)
            step = (top - bottom) / (2**own.bits - 1)
            # A constant input is the offset, with any step.
            step = torch.where(step > SMALLEST_STEP, step, torch.ones_like(step))
            self.step[k] = step.clamp_max(torch.finfo(self.step.dtype).max)
            self.offset[k] = bottom
        self._histogram = self._ends = None

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        step, offset = self._own(k)
        codes = ((widened(x) - offset) / step).clamp_(0, 2 ** self.formats[k].bits - 1).round_()
        return Codes(codes.to(torch.int32), step, -offset / step)

    def _own(self, k: int) -> tuple[Tensor, Tensor]:
        return widened(self.step[k]).clamp_min(SMALLEST_STEP), widened(self.offset[k])

    # Fast path

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        step, offset = self._own(k)
        _shifted_codes(x, step, offset, 2 ** self.formats[k].bits - 1, out)
        return step
