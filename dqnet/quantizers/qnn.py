"""Quantized neural networks: weights and activations of a few bits in [−1, 1], from scratch.

Hubara et al. 2016, *Quantized Neural Networks: Training Neural Networks with Low Precision Weights
and Activations*, https://arxiv.org/abs/1609.07061: one bit is the sign, eq. 1; its gradient is that
of hard tanh; real-valued weights are kept and clipped, algorithm 1. Several bits are the fixed
grid of Moons, Bankman, Verhelst, *Embedded Deep Learning*, Springer 2018, chapter 3.

Nothing is learned or calibrated: batch norms bring activations to that range, and undo the scale
of the weights. Clipping activations is the network's nonlinearity: the sign of what a ReLU has left
says nothing, so that a network of binary activations has no other one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes, evenly_spaced
from dqnet.quantizers.fixed_point import code_range, step_of
from dqnet.quantizers.half import widened
from dqnet.quantizers.one_pass import pass_inside


class _HardTanhGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, signed: bool) -> Tensor:
        # Not x, which for a weight is clipped in place before a backward pass may have run.
        ctx.save_for_backward((x >= -int(signed)) & (x <= 1))
        codes = torch.empty_like(x)
        return codes.mul_(_codes_into(x, bits, signed, codes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def _codes_into(x: Tensor, bits: int, signed: bool, out: Tensor) -> float:
    """Writes integer codes, of one signed bit ±1, and returns their scale."""
    if bits == 1 and signed:
        unknown = x.isnan()  # which compares as below zero
        torch.ge(x, 0, out=out).mul_(2).sub_(1).masked_fill_(unknown, math.nan)
        return 1.0
    step = step_of(1.0, bits, signed)
    torch.div(x, step, out=out).round_().clamp_(*code_range(bits, signed))
    return step


def qnn(x: Tensor, bits: int, signed: bool = True) -> Tensor:
    """sign(x) at one bit, else clip(round(2^(Q−1) · x) / 2^(Q−1), −1, 1 − 2^−(Q−1)).

    Args:
        x: any shape.
        bits: Q, 1 to 16.
        signed: without, the values are 0 … 1 − 2^−Q, at one bit 0 and ½: the sign of what is never
            negative says nothing.

    Returns:
        A tensor of the shape of ``x``, sign(0) being +1. Its gradient is passed on where x is in
        [−1, 1], or in [0, 1].
    """
    return _HardTanhGradient.apply(widened(x), bits, signed).to(x.dtype)


class QNN(Quantizer):
    """The fixed grid; it has no parameters."""

    def forward(self, x: Tensor, k: int) -> Tensor:
        return qnn(x, self.formats[k].bits, self.signed)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        bits = self.formats[k].bits
        codes = torch.empty_like(widened(x))
        step = torch.as_tensor(_codes_into(widened(x), bits, self.signed, codes)).to(codes)
        if bits == 1 and self.signed:  # −1 and 1 are the codes 0 and 1
            return evenly_spaced(codes, -step, 2 * step, 1)
        return Codes(codes.to(torch.int32), step, torch.zeros_like(step))

    # Fast path

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> float:
        return _codes_into(x, self.formats[k].bits, self.signed, out)

    @torch.no_grad()
    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        pass_inside(grad, x, -int(self.signed), 1, out)
        return []


class QNNWeight(QNN, name="qnn", of="weight"):
    """Weights, of which the real-valued ones stay in [−1, 1]."""

    rescales = True

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        x.clamp_(-1, 1)  # what the optimizer's step has left, before it is used


class QNNInput(QNN, name="qnn", of="input"):
    """Inputs."""
