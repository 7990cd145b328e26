"""Fixed point: evenly spaced values in [−1, 1), in units of a power of two.

Moons, Bankman, Verhelst, *Embedded Deep Learning*, Springer 2018, chapter 3: at Q bits
q = clip(round(2^(Q−1) · x) / 2^(Q−1), −1, 1 − 2^−(Q−1)), x having been divided by 2ⁿ, which a shift
undoes. A scale for each layer is also known as dynamic fixed point (Courbariaux et al. 2015,
https://arxiv.org/abs/1412.7024, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqnet.errors import UserError, unknown_name
from dqnet.formats import MAX_BITS, Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.grid import FakeQuantize, Grid, centered_codes, pass_unclipped
from dqnet.quantizers.half import widened
from dqnet.quantizers.one_pass import extremes, finite_values

RESCALINGS = ("layerwise", "uniform")
#: n of tensors that hold next to nothing: a step is not to vanish
SMALLEST_EXPONENT = -64


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest code."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def step_of(reach: Tensor | float, bits: int, signed: bool) -> Tensor | float:
    """From one value to the next, of those from −``reach`` (or 0) to one step below ``reach``."""
    return reach * 2.0 ** (signed - bits)


def fixed_point_grid(reach: Tensor, bits: int, signed: bool) -> Grid:
    """The values of Q bits, ``reach`` being 2ⁿ; zero has the code 0."""
    return Grid(step_of(reach, bits, signed), torch.zeros_like(reach), *code_range(bits, signed))


def fixed_point(x: Tensor, bits: int, signed: bool = True, reach: Tensor | float = 1.0) -> Tensor:
    """2ⁿ · clip(round(2^(Q−1) · x/2ⁿ) / 2^(Q−1), −1, 1 − 2^−(Q−1)).

    Args:
        x: any shape.
        bits: Q, 1 to 16.
        signed: without, there is no sign bit: 2ⁿ · clip(round(2^Q · x/2ⁿ) / 2^Q, 0, 1 − 2^−Q).
        reach: 2ⁿ.

    Returns:
        A tensor of the shape of ``x``; its gradient is that of the clip.
    """
    grid = fixed_point_grid(torch.as_tensor(reach, device=x.device), bits, signed)
    return FakeQuantize.apply(widened(x), grid, False).to(x.dtype)


class FixedPoint(Quantizer):
    """Fixed point whose scale is the smallest power of two that covers what was observed.

    The largest value is therefore at most 2ⁿ, one step above the last code.

    Args:
        formats, options: as of any quantizer.
        signed: an input that is never negative, as behind a ReLU, has no sign bit and thus twice
            as many values; the book's inputs always have one.
        rescaling: ``layerwise``: n of each tensor's own; or ``uniform``: one n for all weights of
            the network and one for all inputs of its layers.
    """

    storage = range(2, MAX_BITS + 1)

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        rescaling: str = "layerwise",
        **options: Any,
    ) -> None:
        super().__init__(formats, **options)
        if rescaling not in RESCALINGS:
            raise unknown_name("rescaling", rescaling, RESCALINGS)
        self._uniform = rescaling == "uniform"
        self.register_buffer("reach", torch.ones(()))  # 2ⁿ
        self._largest: float | None = None  # magnitude seen so far

    def forward(self, x: Tensor, k: int) -> Tensor:
        return fixed_point(x, self.formats[k].bits, self.signed, widened(self.reach))

    def _grid(self, k: int) -> Grid:
        return fixed_point_grid(widened(self.reach), self.formats[k].bits, self.signed)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        grid = self._grid(k)
        codes = centered_codes(widened(x), grid, False)
        return Codes(codes.to(torch.int32), grid.scale, grid.zero_point)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        values = finite_values(x)
        if values.numel():
            low, high = extremes(values)
            self._largest = max(self._largest or 0.0, -low.item(), high.item())

    @classmethod
    def pool(cls, quantizers: Sequence[FixedPoint]) -> None:
        uniform = [own for own in quantizers if own._uniform]
        largest = [own._largest for own in uniform if own._largest is not None]
        for own in uniform:
            own._largest = max(largest, default=None)

    @torch.no_grad()
    def finish(self) -> None:
        if self._largest:
            mantissa, exponent = math.frexp(self._largest)  # of which the first is in [½, 1)
            exponent -= mantissa == 0.5
            most = math.frexp(torch.finfo(self.reach.dtype).max)[1] - 1
            self.reach.fill_(2.0 ** min(max(exponent, SMALLEST_EXPONENT), most))
        elif self._largest == 0:
            self.reach.fill_(1)
        self._largest = None

    def prepare(self, x: Tensor) -> None:
        if self._uniform and not self.ready:
            raise UserError(
                "fixed_point with rescaling=uniform has one scale for the whole network, which its "
                "first batch does not tell: run dqnet.calibrate "
                "(quant.calibration.before_training=true)"
            )
        super().prepare(x)

    # Fast path

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        grid = self._grid(k)
        centered_codes(x, grid, False, out)
        return grid.scale

    @torch.no_grad()
    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        pass_unclipped(grad, x, self._grid(k), out)
        return []


class FixedPointWeight(FixedPoint, name="fixed_point", of="weight"):
    """Weights; those of a network share a scale if rescaling is uniform."""


class FixedPointInput(FixedPoint, name="fixed_point", of="input"):
    """Inputs, likewise."""
