"""Power-of-two steps from thresholds that are learned as logarithms.

Jain et al. 2020, *Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference
of Deep Neural Networks*, https://arxiv.org/abs/1903.08066. Quantizer: section 3.1; gradients: eqs.
6 to 8, the ceiling and the rounding being passed straight through. Andri et al. 2022,
https://arxiv.org/abs/2209.12982, learn scales of Winograd's taps so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer


def step_of(log2_threshold: Tensor, bits: int) -> Tensor:
    """s = 2^⌈log₂ t⌉ / 2^(b − 1), a power of two."""
    return torch.exp2(log2_threshold.ceil() - (bits - 1))


class _TrainedThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log2_threshold: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, log2_threshold)
        ctx.bits = bits
        step = step_of(log2_threshold, bits)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return (x / step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, log2_threshold = ctx.saved_tensors
        step = step_of(log2_threshold, ctx.bits)
        low, high = -(2 ** (ctx.bits - 1)), 2 ** (ctx.bits - 1) - 1
        ratio = x / step
        codes = ratio.round()
        inside = (codes >= low) & (codes <= high)
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            # Inside ⌊x/s⌉ − x/s, outside the code at that end.
            slope = codes.clamp_(low, high).sub_(ratio.mul_(inside)).mul_(grad)
            axes = [i for i, size in enumerate(log2_threshold.shape) if size == 1]
            grad_threshold = slope.sum(axes, keepdim=True) * step * math.log(2)
        return grad * inside, grad_threshold, None


def trained_threshold(x: Tensor, log2_threshold: Tensor, bits: int) -> Tensor:
    """clip(⌊x/s⌉, −2^(b − 1), 2^(b − 1) − 1) · s with s = 2^⌈log₂ t⌉ / 2^(b − 1).

    Args:
        x: any shape.
        log2_threshold: log₂ t, of as many axes, each as long as that of ``x`` or 1.
        bits: b, 2 to 16.

    Returns:
        A tensor of the shape of ``x``, exact wherever x/s is; differentiable in both tensors.
    """
    return _TrainedThreshold.apply(x, log2_threshold, bits)


class TrainedThreshold(Quantizer):
    """Signed numbers with a threshold for each row, or one for all.

    Before any training it is the largest magnitude that was observed, which nothing exceeds but, if
    it is a power of two, by one step.

    Args:
        bits: b.
        rows: how many thresholds there are: one for each of ``x[0]``, ``x[1]`` …, or 1.
        learned: whether they are trained.
    """

    def __init__(self, bits: int, rows: int, learned: bool) -> None:
        super().__init__([Format(bits)], signed=True)
        self.log2_threshold = nn.Parameter(torch.zeros(rows), requires_grad=learned)
        self._largest: Tensor | None = None

    def forward(self, x: Tensor, k: int = 0) -> Tensor:
        threshold = self.log2_threshold.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        return trained_threshold(x, threshold, self.formats[k].bits)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Sees ``[R, ...]``."""
        magnitude = x.abs().nan_to_num(0.0, posinf=0.0).flatten(1).amax(1)
        if len(self.log2_threshold) == 1:
            magnitude = magnitude.amax(0, keepdim=True)
        self._largest = magnitude if self._largest is None else magnitude.maximum(self._largest)

    def observed_in(self, unit: Tensor) -> None:
        """Says, after observing, in what unit quantized tensors will be."""
        self._largest = self._largest / unit

    @torch.no_grad()
    def finish(self) -> None:
        if self._largest is not None:
            # A row of nothing but zeros: any threshold represents it.
            largest = torch.where(self._largest > 0, self._largest, 1.0)
            self.log2_threshold.copy_(largest.log2())
            self._largest = None
