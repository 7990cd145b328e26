"""Codebooks: k-means of a layer's values, each of which is then the index of its cluster.

Han, Mao and Dally 2016, *Deep Compression*, https://arxiv.org/abs/1510.00149, section 3: weight
sharing by k-means (3.1), the initial centroids (3.2), and the centroids' gradients, which are the
sums of their clusters' (3.3, eq. 3). Of a pruned layer only the weights that are left are clustered
(figure 2). Inputs have a codebook too, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
            each but for a zero that is kept, which is the first.
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
            self.centroids[part] = torch.from_numpy(self._found(values, own)).to(self.centroids)
        self._seen = []

    def _found(self, values: np.ndarray, own: Format) -> np.ndarray:
        """The values of a format, ``[2ᵇ]``."""
        return cluster(values, 2**own.bits, self._init, self._seed)


class CodebookWeight(Codebook, name="codebook", of="weight"):
    """Weights: their clusters stay as they were found, the codebook is trained.

    What stays is the float weight itself, which says with the centroids of k-means which cluster
    each weight is in.

    Args:
        formats, options: as of :class:`Codebook`.
        keep_zero: weights of exactly zero stay zero, as pruning made them: code 0 is theirs alone
            and is not trained, the others have the 2ᵇ − 1 that are left. So a weight takes b bits
            with its zeros, and where zeros are skipped their code fills gaps that are too long.

    Attributes:
        table: the codebooks as they are trained, of the shape of ``centroids``.
    """

    keeps_weight = True

    def __init__(
        self, formats: Sequence[Format], *, keep_zero: bool = False, **options: Any
    ) -> None:
        super().__init__(formats, **options)
        self._keep_zero = keep_zero
        self.table = nn.Parameter(torch.zeros_like(self.centroids))

    def codes(self, x: Tensor, k: int) -> Tensor:
        if not self._keep_zero:
            return super().codes(x, k)
        others = 1 + nearest_codes(widened(x), widened(self.centroids[self._slices[k]][1:]))
        return torch.where(x == 0, 0, others)

    def values(self, k: int) -> Tensor:
        table = widened(self.table[self._slices[k]])
        return F.pad(table[1:], (1, 0)) if self._keep_zero else table

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

    def _found(self, values: np.ndarray, own: Format) -> np.ndarray:
        if not self._keep_zero:
            return super()._found(values, own)
        values, count = values[values != 0], 2**own.bits - 1
        if count > len(values):
            raise UserError(
                f"a codebook of {count} values beside zero is larger than what is left of the "
                f"weight, {len(values)} values that are not zero: use fewer bits for this layer"
            )
        return np.insert(cluster(values, count, self._init, self._seed), 0, 0.0)


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
