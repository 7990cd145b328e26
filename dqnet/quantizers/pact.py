"""PACT: Parameterized Clipping Activation for Quantized Neural Networks.

Choi et al., 2018, https://arxiv.org/abs/1805.06085. Activations: eqs. 1 and 2; the gradient to the
clipping value α: eq. 3. Its weights are DoReFa's, as in the paper's experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes, evenly_spaced
from dqnet.quantizers.half import widened

#: α is a scale and has to stay above zero, wherever the optimizer takes it.
SMALLEST_ALPHA = 1e-4


class _ClipAtAlpha(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, levels: int, signed: bool) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.signed = signed
        codes = torch.empty_like(x)
        return codes.mul_(_codes_into(x, alpha, levels, signed, codes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, alpha = ctx.saved_tensors
        top = alpha.clamp_min(SMALLEST_ALPHA)
        above = x >= top
        below = x <= -top if ctx.signed else x < 0
        grad_alpha = (grad * above).sum()
        if ctx.signed:
            grad_alpha = grad_alpha - (grad * below).sum()
        return grad * ~(above | below), grad_alpha, None, None


def _codes_into(x: Tensor, alpha: Tensor, levels: int, signed: bool, out: Tensor) -> Tensor:
    """Writes the codes 0 … levels, or −levels/2 … levels/2, and returns their scale."""
    top = alpha.clamp_min(SMALLEST_ALPHA)
    torch.div(x, top, out=out)
    if not signed:
        out.clamp_(0, 1).mul_(levels).round_()
        return top / levels
    half = levels / 2
    out.clamp_(-1, 1).add_(1).mul_(half).round_().sub_(half)
    return top / half


def pact_activation(x: Tensor, alpha: Tensor, width: int, signed: bool = False) -> Tensor:
    """round(y · (2ᵇ − 1)/α) · α/(2ᵇ − 1) with y = clip(x, 0, α).

    Args:
        x: any shape.
        alpha: the clipping value, a scalar tensor above 0. Its gradient is that of every element
            at or above α (and, in the signed form, minus that of every element at or below −α).
        width: bits, 1 to 16.
        signed: clip to [−α, α] and place the ``2**width`` values evenly from −α to α.

    Returns:
        A tensor of the shape of ``x``.
    """
    levels = 2**width - 1
    return _ClipAtAlpha.apply(widened(x), widened(alpha), levels, signed).to(x.dtype)


class PACT(Quantizer, name="pact", of="input", weights="dorefa"):
    """Activations clipped at a learned α, one per layer; the paper's weights are DoReFa's.

    Args:
        formats, signed, channels: as of any quantizer.
        alpha_init: α before training, above 0. The paper starts high and lets the regularisation
            of α (``quant.parameter_decay``) bring it down.
    """

    decayed = ("alpha",)

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = None,
        channels: int | None = None,
        alpha_init: float = 8.0,
    ) -> None:
        super().__init__(formats, signed=signed, channels=channels)
        if not 0 < alpha_init < math.inf:
            raise UserError(f"alpha_init {alpha_init} must be above 0 and finite")
        self.alpha = nn.Parameter(torch.tensor(float(alpha_init)))

    def forward(self, x: Tensor, k: int) -> Tensor:
        return pact_activation(x, self.alpha, self.formats[k].bits, self.signed)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        levels = 2 ** self.formats[k].bits - 1
        top = widened(self.alpha).clamp_min(SMALLEST_ALPHA)
        low = -top if self.signed else torch.zeros_like(top)
        return evenly_spaced(widened(self(x, k)), low, (top - low) / levels, levels)

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        levels = 2 ** self.formats[k].bits - 1
        return _codes_into(x, widened(self.alpha), levels, self.signed, out)
