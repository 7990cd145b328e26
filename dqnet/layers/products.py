"""Products of a routed layer that both forms of the choice's gradient use."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled(weight: Tensor, gain: Tensor | None, k: int, scale: Tensor | float) -> Tensor:
    """The weight at precision k, its channels multiplied by ``gain[k]`` and all by ``scale``."""
    if gain is not None:
        scale = (gain[k] * scale).view(-1, *[1] * (weight.dim() - 1)).to(weight.dtype)
    elif isinstance(scale, float) and scale == 1:
        return weight
    return weight * scale


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products image by image: ``[N, ...]`` twice to ``[N]``."""
    channels_last = a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last)
    if channels_last and a.stride() == b.stride():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # so that flattening copies nothing
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
