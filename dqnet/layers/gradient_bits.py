"""Gradients of g bits: what flows back into a layer, quantized with noise that leaves its mean.

Zhou et al. 2016, *DoReFa-Net*, https://arxiv.org/abs/1606.06160, section 2.5, eq. 12; Hubara et al.
2016, https://arxiv.org/abs/1609.07061, train with gradients of 6 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dqnet.processes import own_rows
from dqnet.quantizers.half import widened


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return quantized_gradient(grad, ctx.bits), None


def quantize_gradient(y: Tensor, bits: int) -> Tensor:
    """``y``, whose gradient :func:`quantized_gradient` replaces.

    Args:
        y: a layer's output ``[N, ...]``.
        bits: g, 1 to 16.
    """
    return _Identity.apply(y, bits)


def quantized_gradient(grad: Tensor, bits: int) -> Tensor:
    """2 · m · [quantize_g(dr / (2 · m) + ½ + N) − ½], m being each image's largest magnitude.

    N is uniform noise of half a step to either side, drawn from PyTorch's generator, so that the
    mean of the result is dr. An image has at most ``2**bits`` different values; none of them is
    zero.

    Args:
        grad: dr ``[N, ...]``, the gradient to a layer's output.
        bits: g, 1 to 16.
    """
    wide, levels = widened(grad), 2**bits - 1
    largest = wide.abs().amax(tuple(range(1, wide.dim())), keepdim=True)
    # Of an image without a gradient everything stays zero.
    codes = wide / torch.where(largest == 0, 1, 2 * largest)
    codes.add_(0.5).mul_(levels)
    noise = own_rows(lambda n: torch.rand(n, *codes.shape[1:], device=codes.device), len(codes))
    codes.add_(noise).sub_(0.5).round_().clamp_(0, levels)
    return codes.div_(levels).sub_(0.5).mul_(2 * largest).to(grad.dtype)
