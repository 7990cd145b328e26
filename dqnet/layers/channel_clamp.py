"""A clamp with limits of its own for every channel: what ReLU6 becomes if channels are scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelClamp(nn.Module):
    """``min(max(x, low), high)`` for ``[N, C, ...]``.

    Args:
        low, high: the limits ``[C]``, buffers.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.clamp(x, self.low.view(shape), self.high.view(shape))
