"""Evenly spaced values with a scale and a zero point, and how a tensor is brought onto them.

Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 2: quantizers, eqs. 1 to 8;
stochastic rounding, section 2.3; gradients, section 2.4, eq. 11.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqnet.quantizers.half import widened
from dqnet.quantizers.one_pass import pass_inside


class Grid(NamedTuple):
    """The evenly spaced values Δ · (code − z), code from ``bottom`` to ``top``.

    Attributes:
        scale: Δ, above 0; of any shape that broadcasts against what is quantized.
        zero_point: z, whole, of the same shape.
    """

    scale: Tensor
    zero_point: Tensor
    bottom: int
    top: int


def affine_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """Codes 0 … 2ᵇ − 1 for the range from ``low`` ≤ 0 to ``high`` ≥ 0; zero has a code."""
    top = 2**bits - 1
    scale = _scale(high - low, top)
    return Grid(scale, (-low / scale).round().clamp(0, top), 0, top)


def symmetric_grid(low: Tensor, high: Tensor, bits: int, signed: bool, narrow: bool) -> Grid:
    """Zero points of 0: codes −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1, or 0 … 2ᵇ − 1 if not ``signed``.

    Args:
        narrow: leave out the lowest code, so that there are as many on either side of zero.
    """
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    bottom = (-top if narrow else -top - 1) if signed else 0
    scale = _scale(high.maximum(-low) if signed else high, top)
    return Grid(scale, torch.zeros_like(scale), bottom, top)


def _scale(length: Tensor, steps: int) -> Tensor:
    """length / steps; 1 for a range of nothing but zero, which any scale represents."""
    scale = length / steps
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def centered_codes(x: Tensor, grid: Grid, stochastic: bool, out: Tensor | None = None) -> Tensor:
    """code − zero point, so that it is zero where x is."""
    codes = torch.div(x, grid.scale, out=out)
    if stochastic:
        codes.add_(torch.rand_like(codes)).floor_()
    else:
        codes.round_()
    low, high = grid.bottom - grid.zero_point, grid.top - grid.zero_point
    # Not clamp: with tensors for ends it is ten times slower than both of these.
    return codes.clamp_min_(low).clamp_max_(high)


class FakeQuantize(torch.autograd.Function):
    """Quantized values; the gradient is passed on where x is not clipped (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, stochastic: bool) -> Tensor:
        ctx.save_for_backward(x, grid.scale, grid.zero_point)
        ctx.ends = grid.bottom, grid.top
        return centered_codes(x, grid, stochastic).mul_(grid.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        grid = Grid(scale, zero_point, *ctx.ends)
        return pass_unclipped(grad, x, grid, torch.empty_like(grad)), None, None


def pass_unclipped(grad: Tensor, x: Tensor, grid: Grid, out: Tensor) -> Tensor:
    """``grad`` where x is nearest to one of the grid's values without being clipped, else zero."""
    low = (grid.bottom - grid.zero_point - 0.5) * grid.scale
    high = (grid.top - grid.zero_point + 0.5) * grid.scale
    return pass_inside(grad, x, low, high, out)


def affine(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, stochastic: bool = False
) -> Tensor:
    """Δ · (clip(round(x/Δ) + z, 0, 2ᵇ − 1) − z).

    Args:
        x: any shape.
        scale: Δ, above 0, broadcasts against ``x``.
        zero_point: z, whole numbers in 0 … 2ᵇ − 1, likewise.
        bits: b, 2 to 16.
        stochastic: round(v) = ⌊v + u⌋ with u uniform in [0, 1), whose mean is v.

    Returns:
        A tensor of the shape of ``x``; its gradient is that of the clip.
    """
    grid = Grid(widened(scale), widened(zero_point), 0, 2**bits - 1)
    return FakeQuantize.apply(widened(x), grid, stochastic).to(x.dtype)
