"""Weights as sparse powers of two times a small basis.

Chen et al. 2022, *SmartDeal: Re-Modeling Deep Network Weights for Efficient Inference and
Training*, https://arxiv.org/abs/2101.01163, and Zhao et al. 2020, *SmartExchange*,
https://arxiv.org/abs/2005.03403, algorithm 1: a matrix W ``[M, S]`` of a filter becomes Ce · B with
coefficients Ce ``[M, S]`` that are 0 or ±2⁻ⁿ and a basis B ``[S, S]`` of 8 bits. Coefficients are
normalised by column and rounded to powers of two, B is fitted to them by least squares, Ce to B,
and so on, from B = 1.

Rows of a filter are S consecutive numbers: of a convolution wider than 1 those of a row of its
kernel, of all else three. The paper retrains by turns, an epoch of the float weights and a new
decomposition. Here every step decomposes them anew and the gradient goes straight through, so that
the loss is that of the network that is kept; coefficients that were zero can come back.

Differences: rows are made zero by their share in a layer, not by a threshold; a column is
normalised by its largest magnitude times one of a few factors, that with the least error; and
coefficients have b bits with their zero, so that 2ᵇ⁻¹ − 1 exponents are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes, rows_restored
from dqnet.quantizers.granularity import memory_format_of
from dqnet.quantizers.half import widened
from dqnet.quantizers.power_of_two import nearest_power, powers_of_two
from dqnet.quantizers.straight_through import straight_through
from dqnet.quantizers.table import nearest_codes

#: of the 8 bits of a basis
_TOP = 127
#: what a column's largest magnitude becomes, of which rounding to powers of two makes 1
_FACTORS = (2**-0.25, 1.0, 2**0.25, 2**0.5)


class Decomposition(NamedTuple):
    """Coefficients · basis · scale.

    Attributes:
        coefficients: ``[G, M, S]``, 0 or ±2⁻ⁿ.
        basis: whole numbers ``[G, S, S]``.
        scale: bfloat16 ``[G, 1, 1]``.
    """

    coefficients: Tensor
    basis: Tensor
    scale: Tensor


class SmartDealWeight(Quantizer, name="smart_deal", of="weight"):
    """A decomposition of the weight as it is, with coefficients of the format's bits.

    With 2 to 5 of them products and sums of coefficients and basis are exact in float32 (for S up
    to 8), so that a weight is the same wherever it is put together.

    Args:
        sparsity: share of a layer's rows whose coefficients are zero, those of least norm.
        threshold: coefficients below it, relative to the largest of their column, become zero.
        rows: the most that a matrix has; a filter of more becomes several of equal size.
        width: S of what is not a convolution, or one of width 1.
        iterations: how often coefficients and basis are fitted to each other.
        formats, options: as of any quantizer.
    """

    storage = range(2, 6)

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        sparsity: float = 0.0,
        threshold: float = 0.0,
        rows: int = 96,
        width: int = 3,
        iterations: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(formats, **options)
        for name, share in (("sparsity", sparsity), ("threshold", threshold)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                raise UserError(f"{name} {share!r} of smart_deal must be from 0 to below 1")
        for name, count in (("rows", rows), ("width", width), ("iterations", iterations)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UserError(f"{name} {count!r} of smart_deal must be a number from 1")
        self._sparsity, self._threshold = sparsity, threshold
        self._rows, self._width, self._iterations = rows, width, iterations

    def forward(self, x: Tensor, k: int) -> Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            found = self.decompose(x, k)
            products = found.coefficients @ found.basis * found.scale.to(found.basis)
            quantized = rows_restored(products, x.shape).to(x.dtype)
            quantized = quantized.contiguous(memory_format=memory_format_of(x))
        return straight_through(x, quantized)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        with torch.autocast(x.device.type, enabled=False):
            found = self.decompose(x, k)
        table = powers_of_two(self.formats[k].bits).to(found.coefficients)
        codes = nearest_codes(found.coefficients, table).to(torch.int32)
        zero_point = torch.zeros_like(found.scale)
        basis = found.basis.to(torch.int8)
        return Codes(codes, found.scale, zero_point, table, basis=basis, shape=x.shape)

    def decompose(self, x: Tensor, k: int) -> Decomposition:
        """A weight's decomposition in format k.

        Args:
            x: ``[O, ...]``.
            k: index into ``formats``.
        """
        x = widened(x)
        unit = nearest_power(_or_one(x.abs().amax()))  # without which squares would vanish
        matrices, kept = self._matrices(x / unit)
        least = 2.0 ** (2 - 2 ** (self.formats[k].bits - 1))
        target = matrices * kept
        coefficients = _rounded(target, least, self._threshold) * kept  # as if B were 1
        basis = _fitted_basis(coefficients, target)
        for _ in range(self._iterations - 1):
            fitted = target @ (basis.mT @ _inverse(basis @ basis.mT))
            coefficients = _rounded(fitted, least, self._threshold) * kept
            basis = _fitted_basis(coefficients, target)
        scale = _or_one(basis.abs().amax((1, 2), keepdim=True)) / _TOP
        scale = scale.to(torch.bfloat16)
        whole = (basis / scale.to(basis)).round_().clamp_(-_TOP, _TOP)
        return Decomposition(coefficients, whole, scale * unit.to(scale))

    def _matrices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[G, M, S]``, and which of their rows are kept: 1 or 0, ``[G, M, 1]``."""
        width = x.shape[-1] if x.dim() > 2 and x.shape[-1] > 1 else self._width
        filters = x.flatten(1)
        used = -(-filters.shape[1] // width)
        parts = -(-used // self._rows)
        rows = -(-used // parts)
        padded = F.pad(filters, (0, parts * rows * width - filters.shape[1]))
        matrices = padded.reshape(-1, rows, width)
        zeros = round(self._sparsity * len(x) * used)
        kept = torch.ones_like(matrices[..., :1])
        if zeros:
            added = len(x) * (parts * rows - used)
            norms = matrices.square().sum(2).flatten()
            kept.view(-1)[norms.argsort(stable=True)[: zeros + added]] = 0
        return matrices, kept


def _rounded(fitted: Tensor, least: float, threshold: float) -> Tensor:
    """Coefficients: columns normalised and rounded to 0 or a power of two from ``least`` to 1."""
    normal = fitted / _or_one(fitted.abs().amax(1, keepdim=True))
    magnitude = normal.abs()
    tried, errors = [], []
    for factor in _FACTORS:
        scaled = magnitude * factor
        power = nearest_power(scaled.clamp(least, 1))
        tried.append(power.masked_fill_(magnitude < max(threshold, least / 2 / factor), 0))
        errors.append((power / factor).sub_(magnitude).square_().sum(1, keepdim=True))
    best = torch.stack(errors).argmin(0, keepdim=True)
    chosen = torch.stack(tried).take_along_dim(best, 0)[0]
    return chosen.copysign_(normal)


def _fitted_basis(coefficients: Tensor, target: Tensor) -> Tensor:
    """That of least squares, ``[G, S, S]``."""
    return _inverse(coefficients.mT @ coefficients) @ (coefficients.mT @ target)


def _inverse(gram: Tensor) -> Tensor:
    """Of symmetric matrices ``[G, S, S]``; where one is singular, that of one close to it."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    ridge = 1e-6 * _or_one(diagonal.mean(1, keepdim=True))
    return torch.linalg.inv_ex(gram + torch.diag_embed(ridge.expand_as(diagonal))).inverse


def _or_one(x: Tensor) -> Tensor:
    """What can be divided by: 1 in the place of nothing."""
    return torch.where(x > torch.finfo(x.dtype).tiny, x, torch.ones_like(x))
