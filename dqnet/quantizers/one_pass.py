"""Passes over an input that read every value once, in the order in which they lie in memory.

Activations are the largest tensors of a training step, so that the number of passes over them is
what quantizing them costs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pass_inside(
    grad: Tensor, x: Tensor, low: Tensor | float, high: Tensor | float, out: Tensor
) -> Tensor:
    """``grad`` where low ≤ x ≤ high, else zero.

    The gradient of hard tanh is one pass instead of the four of comparisons and masks. Its interval
    is open, and its ends are numbers, which on a GPU would have to be waited for.

    Args:
        grad, x: of the same shape.
        low, high: numbers or scalar tensors.
        out: where the result goes; it may be ``grad``.
    """
    ends = [end for end in (low, high) if isinstance(end, Tensor)]
    if any(end.dim() or not end.is_cpu for end in ends):
        return torch.mul(grad, (x >= low) & (x <= high), out=out)
    below = _next(low, x.dtype, -torch.inf)
    above = _next(high, x.dtype, torch.inf)
    return torch.ops.aten.hardtanh_backward(grad, x, below, above, grad_input=out)


def _next(end: Tensor | float, dtype: torch.dtype, direction: float) -> float:
    end = torch.as_tensor(end, dtype=dtype)
    return torch.nextafter(end, torch.full_like(end, direction)).item()


def in_memory_order(x: Tensor) -> Tensor:
    """All values as ``[M]``, without a copy where they lie without gaps."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(-1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of the values and zero; NaN where one of the values is."""
    low, high = in_memory_order(x).aminmax()
    return low.clamp_max(0), high.clamp_min(0)


def finite_values(x: Tensor) -> Tensor:
    """Those of the values that are finite as ``[M]``, in memory order; a copy only if not all are.

    It asks the device whether all are.
    """
    values = in_memory_order(x)
    if not values.numel() or sum(extremes(values)).isfinite():
        return values
    return values[values.isfinite()]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a · b, a scalar, of two tensors of the same shape."""
    if a.stride() != b.stride():
        return (a * b).sum()
    return torch.dot(in_memory_order(a), in_memory_order(b))
