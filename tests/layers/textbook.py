"""The textbook form of the routed convolution: every image at every width, under autograd.

``y = Σ_k choice[:, k] · conv(Q_k(x), Q_k(w)) + bias``, written with plain torch operations and
without anything of ``dqnet``, in the dtype of its arguments (float64 in the tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of ``soft``."""
    return hard.detach() + (soft - soft.detach())


def clip(x: Tensor, low: Tensor, high: Tensor, gradient_at_low: bool) -> Tensor:
    """``x`` between its bounds, the bounds outside; at ``high`` the gradient goes to ``high``."""
    below = x < low if gradient_at_low else x <= low
    return torch.where(below, low, torch.where(x < high, x, high))


def dorefa_weight(weight: Tensor, width: int) -> Tensor:
    """Eqs. 7 and 9 of the DoReFa-Net paper."""
    if width == 1:
        sign = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
        return straight_through(sign * weight.abs().mean(), weight)
    levels = 2**width - 1
    unit = weight.tanh() / (2 * weight.tanh().abs().max()) + 0.5
    return 2 * straight_through((unit * levels).round() / levels, unit) - 1


def dorefa_input(x: Tensor, width: int, signed: bool) -> Tensor:
    """Eq. 10, or the map of eq. 9 on the clipped input."""
    levels = 2**width - 1
    if signed:
        unit = x.clamp(-1, 1) / 2 + 0.5
        return 2 * straight_through((unit * levels).round() / levels, unit) - 1
    unit = x.clamp(0, 1)
    return straight_through((unit * levels).round() / levels, unit)


def pact_input(x: Tensor, alpha: Tensor, width: int, signed: bool) -> Tensor:
    """Eqs. 1 to 3 of the PACT paper."""
    levels = 2**width - 1
    if signed:
        clipped = clip(x, -alpha, alpha, gradient_at_low=False)
        hard = ((clipped / alpha + 1) / 2 * levels).round() / levels * 2 * alpha - alpha
    else:
        clipped = clip(x, torch.zeros_like(alpha), alpha, gradient_at_low=True)
        hard = (clipped * levels / alpha).round() * alpha / levels
    return straight_through(hard, clipped)


def lsq(v: Tensor, step: Tensor, width: int, signed: bool, count: int) -> Tensor:
    """Eqs. 1 and 2 of the LSQ paper with the gradients of eqs. 3 and 5.

    The slope of eq. 3 is written as one number an element. Autograd would give it as the
    difference of two sums that are 2ᵇ times as large, and lose as many digits.
    """
    if not signed:
        low, high = 0, 2**width - 1
    elif width == 1:
        low, high = -1, 1
    else:
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    # Section 2.2: the value of the step, with its gradient multiplied by g.
    step = straight_through(step, step / math.sqrt(count * high))
    ratio = (v / step).detach()
    if signed and width == 1:
        codes = torch.where(ratio >= 0, 1.0, -1.0).to(v.dtype)
    else:
        codes = ratio.clamp(low, high).round()
    inside = (low < ratio) & (ratio < high)
    slope = torch.where(inside, codes - ratio, codes)
    return straight_through(codes * step, torch.where(inside, v, 0) + slope * step)


def quantize_weight(
    weight: Tensor, name: str, widths: Sequence[int], k: int, parameters: Mapping[str, Tensor]
) -> Tensor:
    if name == "lsq":
        return lsq(weight, parameters["weight_quantizer.step"][k], widths[k], True, weight.numel())
    return dorefa_weight(weight, widths[k])


def quantize_input(
    x: Tensor,
    name: str,
    widths: Sequence[int],
    k: int,
    signed: bool,
    parameters: Mapping[str, Tensor],
) -> Tensor:
    if name == "lsq":
        features = math.prod(x.shape[1:])
        return lsq(x, parameters["input_quantizer.step"][k], widths[k], signed, features)
    if name == "pact":
        return pact_input(x, parameters["input_quantizer.alpha"], widths[k], signed)
    return dorefa_input(x, widths[k], signed)


def routed_conv(
    x: Tensor,
    choice: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    name: str,
    widths: Sequence[int],
    signed: bool,
    parameters: Mapping[str, Tensor],
    convolve: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The sum over the widths; ``convolve(x, weight)`` is the float convolution without a bias."""
    y = sum(
        choice[:, k].view(-1, 1, 1, 1)
        * convolve(
            quantize_input(x, name, widths, k, signed, parameters),
            quantize_weight(weight, name, widths, k, parameters),
        )
        for k in range(len(widths))
    )
    return y if bias is None else y + bias.view(-1, 1, 1)
