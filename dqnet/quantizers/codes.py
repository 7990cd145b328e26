"""What a quantized tensor is made of: for export, and for its size on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        basis: int8 ``[G, S, S]``, where the codes are those of G matrices of coefficients, each to
            be multiplied by its own: ``[G, M, S]`` of the tensor's rows, see ``shape``. The scale
            ``[G, 1, 1]`` is that of the basis, and there is a table.
        shape: of the tensor, if there is a basis. Its first axis divides G; what its matrices have
            more than ``tensor[i]`` is dropped.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    table: Tensor | None = None
    block: int | None = None
    basis: Tensor | None = None
    shape: torch.Size | None = None

    def cpu(self) -> Codes:
        """The same on the CPU."""
        return self.to(torch.device("cpu"))

    def to(self, device: torch.device) -> Codes:
        """The same on a device."""
        own = vars(self).items()
        parts = {name: part.to(device) for name, part in own if isinstance(part, Tensor)}
        return replace(self, **parts)

    def values(self) -> Tensor:
        """Δ · (code − zero point), or Δ · table[code], in the type of the scale.

        With a basis, Δ · table[code] · basis in that of the table.
        """
        if self.basis is not None:
            products = self.table[self.codes.long()] @ self.basis.to(self.table)
            return rows_restored(products * self.scale.to(self.table), self.shape)
        scale = self.scale
        if self.block is not None:
            each = scale.repeat_interleave(self.block)[: self.codes.numel()]
            scale = each.view(self.codes.shape)
        if self.table is not None:
            return self.table[self.codes.long()].to(scale.dtype) * scale
        return (self.codes.to(scale.dtype) - self.zero_point) * scale


def rows_restored(matrices: Tensor, shape: torch.Size) -> Tensor:
    """``[G, M, S]`` as a tensor of a shape, whose first axis divides G."""
    rows = matrices.reshape(shape[0], -1)[:, : shape[1:].numel()]
    return rows.reshape(shape)


def evenly_spaced(quantized: Tensor, low: Tensor, scale: Tensor, levels: int) -> Codes:
    """The codes 0 … ``levels`` of values that are ``low + scale · code`` already."""
    codes = ((quantized - low) / scale).round().clamp(0, levels)
    return Codes(codes.to(torch.int32), scale, -low / scale)
