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

from dqnet.processes import mean_over_processes
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.precision import widened

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
        width, signed = ctx.format
        low, high = lsq_range(width, signed)
        ratio = v / step.clamp_min(SMALLEST_STEP)
        inside = (ratio > -low) & (ratio < high)
        # Eq. 3: round(v/s) − v/s inside, −Q_N or Q_P outside.
        slope = torch.where(inside, -ratio, 0)
        slope += _codes_(ratio, low, high, width == 1 and signed)
        return grad * inside, (grad * slope).sum() * ctx.grad_scale, None, None, None


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


def initial_step(v: Tensor, width: int, signed: bool) -> Tensor:
    """2 · mean|v| / √Q_P, a scalar; 1 for an all-zero tensor, which any step represents.

    The mean is over the finite elements: one NaN would make every later output NaN.
    """
    magnitude = widened(v.detach()).abs()
    finite = magnitude.isfinite()
    if not finite.all():
        magnitude = magnitude[finite]
    step = 2 * magnitude.mean() / math.sqrt(lsq_range(width, signed)[1])
    step = torch.where(step > SMALLEST_STEP, step, torch.ones_like(step))
    return step.clamp_max(torch.finfo(v.dtype).max)


class LSQ(Quantizer, name="lsq"):
    """A learned step per layer and per width, for weights and for activations.

    The steps are initialised on the first forward pass: from the weight, and from the first batch
    for activations (the whole batch of all processes, whatever widths its images chose).
    """

    def __init__(self, widths: Sequence[int], signed: bool = False) -> None:
        super().__init__(widths, signed)
        self.weight_step = nn.Parameter(torch.ones(len(self.widths)))
        self.input_step = nn.Parameter(torch.ones(len(self.widths)))
        self.register_buffer("initialized", torch.tensor(False))
        self._prepared = False  # the buffer's value, kept here to spare a device read per pass

    @torch.no_grad()
    def prepare(self, weight: Tensor, x: Tensor) -> None:
        if self._prepared or not x.isfinite().any():  # nothing to measure, an empty batch too
            return
        if not self.initialized:
            for i, width in enumerate(self.widths):
                self.weight_step[i] = initial_step(weight, width, signed=True)
                self.input_step[i] = initial_step(x, width, self.signed)
            # Each process saw its part of the first batch.
            self.input_step.copy_(mean_over_processes(self.input_step))
            self.initialized.fill_(True)
        self._prepared = True

    def quantize_weight(self, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            lsq(weight, self.weight_step[i], width, True, self._scale(weight.numel(), width, True))
            for i, width in enumerate(self.widths)
        )

    def quantize_input(self, x: Tensor, width: int) -> Tensor:
        # N_F counts the features of one image, so that the scale does not depend on how many
        # images of the batch chose this width.
        scale = self._scale(x[0].numel() if len(x) else 1, width, self.signed)
        return lsq(x, self.input_step[self.widths.index(width)], width, self.signed, scale)

    @torch.no_grad()
    def codes_into(self, x: Tensor, width: int, out: Tensor) -> Tensor:
        step = widened(self.input_step[self.widths.index(width)]).clamp_min(SMALLEST_STEP)
        binary = width == 1 and self.signed
        _codes_(torch.div(x, step, out=out), *lsq_range(width, self.signed), binary)
        return step

    def input_parameters(self) -> list[nn.Parameter]:
        return [self.input_step]

    @staticmethod
    def _scale(count: int, width: int, signed: bool) -> float:
        return 1 / math.sqrt(count * lsq_range(width, signed)[1])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._prepared = False
