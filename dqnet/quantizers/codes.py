"""What a quantized tensor is made of: for export, and for its size on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """A tensor as integer codes; ``values()`` is what the quantizer's forward pass returns.

    Attributes:
        codes: int32, of the tensor's shape; at b bits at most 2ᵇ different ones.
        scale: Δ, above 0: a scalar, or one per channel that broadcasts against ``codes``; with
            ``block`` one for each block, ``[B]``.
        zero_point: the code of zero, likewise; it need not be an integer (DoReFa's levels lie
            evenly around zero and do not contain it). 0 with a table.
        table: values by code before the scale; ``None`` for evenly spaced levels.
        block: elements that share a scale: consecutive ones of the flattened tensor, the last block
            may be shorter. ``None``: scales broadcast.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    table: Tensor | None = None
    block: int | None = None

    def cpu(self) -> Codes:
        """The same on the CPU."""
        return self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> Codes:
        """The same on a device."""
        parts = (self.codes, self.scale, self.zero_point, self.table)
        return Codes(*(None if part is None else part.to(device) for part in parts), self.block)

    def values(self) -> Tensor:
        """Δ · (code − zero point), or Δ · table[code], in the type of the scale."""
        scale = self.scale
        if self.block is not None:
            each = scale.repeat_interleave(self.block)[: self.codes.numel()]
            scale = each.view(self.codes.shape)
        if self.table is not None:
            return self.table[self.codes.long()].to(scale.dtype) * scale
        return (self.codes.to(scale.dtype) - self.zero_point) * scale


def evenly_spaced(quantized: Tensor, low: Tensor, scale: Tensor, levels: int) -> Codes:
    """The codes 0 … ``levels`` of values that are ``low + scale · code`` already."""
    codes = ((quantized - low) / scale).round().clamp(0, levels)
    return Codes(codes.to(torch.int32), scale, -low / scale)
