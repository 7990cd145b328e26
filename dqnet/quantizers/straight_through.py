"""The straight-through estimator.

Bengio et al. 2013, https://arxiv.org/abs/1308.3432, section 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad if inside is None else grad * inside, None, None


def straight_through(x: Tensor, quantized: Tensor, inside: Tensor | None = None) -> Tensor:
    """``quantized``, whose gradient goes to ``x``.

    Args:
        x: any shape.
        quantized: what it became, of the same shape, without a gradient.
        inside: bool of the same shape: where the gradient is passed on; ``None``: everywhere.
    """
    return _StraightThrough.apply(x, quantized, inside)
