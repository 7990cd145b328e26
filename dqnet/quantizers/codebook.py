"""Codebooks: k-means of a layer's values, each of which is then the index of its cluster.

Han, Mao and Dally 2016, *Deep Compression*, https://arxiv.org/abs/1510.00149, section 3: weight
sharing by k-means (3.1), the initial centroids (3.2), and the centroids' gradients, which are the
sums of their clusters' (3.3, eq. 3). Inputs have a codebook too, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.clustering import check_init, cluster
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.granularity import memory_format_of
from dqnet.quantizers.half import widened
from dqnet.quantizers.straight_through import straight_through
from dqnet.quantizers.table import nearest_codes

#: values of a batch of inputs that are clustered, and of all batches
PER_BATCH, IN_ALL = 2**12, 2**16


class Codebook(Quantizer):
    """2ᵇ values for each format of b bits, clustered from what was observed.

    Args:
        formats, options: as of any quantizer.
        init: where k-means starts: ``linear``, ``density`` or ``random``; the paper finds the first
            one best.
        seed: of the random start.

    Attributes:
        centroids: those of k-means, one format's after the other's ``[sum of 2ᵇ]``, ascending in
            each.
    """

    #: a table of 2¹⁶ values would be larger than most layers
    storage = range(1, 9)

    def __init__(
        self, formats: Sequence[Format], *, init: str = "linear", seed: int = 0, **options: Any
    ) -> None:
        super().__init__(formats, **options)
        check_init(init)
        self._init, self._seed = init, seed
        ends = list(accumulate(2**own.bits for own in self.formats))
        self._slices = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        self.register_buffer("centroids", torch.zeros(ends[-1]))
        self._seen: list[Tensor] = []

    def codes(self, x: Tensor, k: int) -> Tensor:
        """The clusters of values, int64 of the shape of ``x``."""
        return nearest_codes(widened(x), widened(self.centroids[self._slices[k]]))

    def values(self, k: int) -> Tensor:
        """The codebook of format k, ``[2ᵇ]``."""
        return widened(self.centroids[self._slices[k]])

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        table = self.values(k)
        one = torch.ones((), device=table.device)
        return Codes(self.codes(x, k).to(torch.int32), one, torch.zeros_like(one), table)

    @torch.no_grad()
    def finish(self) -> None:
        if not self._seen:
            return
        values = torch.cat(self._seen).double().cpu().numpy()
        for own, part in zip(self.formats, self._slices, strict=True):
            found = cluster(values, 2**own.bits, self._init, self._seed)
            self.centroids[part] = torch.from_numpy(found).to(self.centroids)
        self._seen = []


class CodebookWeight(Codebook, name="codebook", of="weight"):
    """Weights: their clusters stay as they were found, the codebook is trained.

    What stays is the float weight itself, which says with the centroids of k-means which cluster
    each weight is in.

    Attributes:
        table: the codebooks as they are trained, of the shape of ``centroids``.
    """

    keeps_weight = True

    def __init__(self, formats: Sequence[Format], **options: Any) -> None:
        super().__init__(formats, **options)
        self.table = nn.Parameter(torch.zeros_like(self.centroids))

    def values(self, k: int) -> Tensor:
        return widened(self.table[self._slices[k]])

    def forward(self, x: Tensor, k: int) -> Tensor:
        values = self.values(k)[self.codes(x, k)].to(x.dtype)
        return values.contiguous(memory_format=memory_format_of(x))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if not x.isfinite().all():
            raise UserError("a weight to be clustered has NaN or infinite values")
        self._seen = [widened(x).flatten()]

    @torch.no_grad()
    def finish(self) -> None:
        if self._seen:
            super().finish()
            self.table.copy_(self.centroids)


class CodebookInput(Codebook, name="codebook", of="input"):
    """Inputs: the codebook is that of the calibration.

    It is clustered from an evenly spaced sample of every batch. The gradient goes straight through
    from the smallest to the largest value.
    """

    def forward(self, x: Tensor, k: int) -> Tensor:
        with torch.no_grad():
            wide, table = widened(x), self.values(k)
            quantized = table[self.codes(x, k)]
            quantized = torch.where(wide.isnan(), wide, quantized).to(x.dtype)
            quantized = quantized.contiguous(memory_format=memory_format_of(x))
            inside = (wide >= table[0]) & (wide <= table[-1])
        return straight_through(x, quantized, inside)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        values = widened(x).flatten()
        values = values[values.isfinite()]
        self._seen.append(values[:: max(1, -(-len(values) // PER_BATCH))].clone())

    @torch.no_grad()
    def finish(self) -> None:
        if self._seen:
            sample = torch.cat(self._seen)
            self._seen = [sample[:: max(1, -(-len(sample) // IN_ALL))]]
        super().finish()
