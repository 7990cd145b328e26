"""Which elements of a weight share a scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.errors import UserError, unknown_name

GRANULARITIES = ("per_tensor", "per_channel", "block")


def check_of_input(granularity: str) -> None:
    """Raises UserError for any but ``per_tensor``: a layer's input has one scale."""
    if granularity in GRANULARITIES and granularity != "per_tensor":
        raise UserError(
            f"granularity {granularity} is of weights; a layer's input has one scale: per_tensor"
        )
    if granularity != "per_tensor":
        raise unknown_name("granularity", granularity, ("per_tensor",))


class Granularity:
    """A weight as rows that have a scale each.

    Args:
        name: ``per_tensor``; ``per_channel``, the first axis; or ``block``: consecutive elements of
            the flattened weight.
        block: how many, at least 1.

    Raises:
        UserError: for another name or number.
    """

    def __init__(self, name: str, block: int) -> None:
        if name not in GRANULARITIES:
            raise unknown_name("granularity", name, GRANULARITIES)
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise UserError(f"block {block!r} must be a number of elements, at least 1")
        self.name = name
        self.block = block if name == "block" else None

    def rows(self, weight: Tensor) -> Tensor:
        """``[R, M]``; the last block is filled up with zeros."""
        if self.name == "per_channel":
            return weight.flatten(1)
        if self.block is None:
            return weight.reshape(1, -1)
        return F.pad(weight.flatten(), (0, -weight.numel() % self.block)).view(-1, self.block)

    def restored(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Rows in the shape and the memory format of the weight that they are of."""
        values = rows.flatten()[: weight.numel()].view(weight.shape)
        return values.contiguous(memory_format=memory_format_of(weight))

    def scale_shape(self, weight: Tensor) -> tuple[int, ...]:
        """Of the scales ``[R]`` in :class:`~dqnet.quantizers.codes.Codes`."""
        if self.name == "per_channel":
            return (-1, *[1] * (weight.dim() - 1))
        return () if self.block is None else (-1,)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format that convolutions expect what became of ``x`` in."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
