"""Rounding to the nearest of any values."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_codes(x: Tensor, table: Tensor) -> Tensor:
    """The index of the nearest value, the lower of two; int64 of the shape of ``x``.

    Args:
        x: any shape.
        table: ``[T]``, ascending.
    """
    middle = (table[1:] + table[:-1]) / 2
    return torch.bucketize(x.contiguous(), middle)
