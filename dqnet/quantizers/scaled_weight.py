"""Weights as values of a fixed set, times the scale of each row: what several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.granularity import Granularity
from dqnet.quantizers.half import widened
from dqnet.quantizers.straight_through import straight_through


class ScaledWeight(Quantizer):
    """A subclass says which values there are, and how a row's largest magnitude scales them.

    The scale is that of the weight as it is, so it follows training; no weight is clipped, and the
    gradient goes straight through. The scale counts as a constant.

    Args:
        granularity: ``per_channel``, ``per_tensor`` or ``block``; ``None``: the method's own.
        block: elements of a block; ``None``: as many as the method's paper has.
        formats, options: as of any quantizer.
    """

    #: what a method says of its granularity
    granularity: ClassVar[str]
    block: ClassVar[int]

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        granularity: str | None = None,
        block: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(formats, **options)
        self._granularity = Granularity(
            self.granularity if granularity is None else granularity,
            self.block if block is None else block,
        )

    def scale(self, largest: Tensor, k: int) -> Tensor:
        """The scale of format k, above 0, for rows of these largest magnitudes ``[R, 1]``."""
        raise NotImplementedError

    def rounded(self, rows: Tensor, k: int) -> Tensor:
        """Each of ``[R, M]``, which a scale was divided out of, as a value of format k."""
        raise NotImplementedError

    def table(self, k: int) -> Tensor:
        """The values of format k by code, float64 ``[2ᵇ]`` at most."""
        raise NotImplementedError

    def codes(self, values: Tensor, k: int) -> Tensor:
        """The codes of values that :meth:`rounded` returned."""
        raise NotImplementedError

    def forward(self, x: Tensor, k: int) -> Tensor:
        with torch.no_grad():
            rows, scale = self._rows(x, k)
            quantized = self.rounded(rows / scale, k).mul_(scale)
            quantized = self._granularity.restored(quantized, x).to(x.dtype)
        return straight_through(x, quantized)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        rows, scale = self._rows(x, k)
        codes = self.codes(self.rounded(rows / scale, k), k)
        codes = self._granularity.restored(codes, x).to(torch.int32)
        scale = scale.view(self._granularity.scale_shape(x))
        table = self.table(k).to(scale)
        return Codes(codes, scale, torch.zeros_like(scale), table, self._granularity.block)

    def _rows(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows = self._granularity.rows(widened(x))
        return rows, self.scale(rows.abs().amax(1, keepdim=True), k)


def absmax_scale(largest: Tensor, top: float) -> Tensor:
    """What makes ``top`` of the largest magnitude; 1 where that is too small to be divided by."""
    scale = largest / top
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
