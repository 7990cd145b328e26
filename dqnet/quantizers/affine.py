"""Affine quantization: a scale and a zero point from an observed range.

Krishnamoorthi 2018, *Quantizing deep convolutional networks for efficient inference: A whitepaper*,
https://arxiv.org/abs/1806.08342. Quantizer: section 2.1, eqs. 1 to 4; stochastic rounding: section
2.3; gradients: section 2.4, eq. 11; per channel: section 3.1. That zero is represented exactly, so
that padding is: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqnet.errors import UserError, unknown_name
from dqnet.formats import MAX_BITS, Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.half import widened
from dqnet.quantizers.observers import OBSERVERS, Observer, observer_factory
from dqnet.quantizers.observers.base import Quantize

GRANULARITIES = ("per_tensor", "per_channel")
ROUNDINGS = ("nearest", "stochastic")


class Grid(NamedTuple):
    """The evenly spaced values Δ · (code − z), code from ``bottom`` to ``top``.

    Attributes:
        scale: Δ, above 0; of any shape that broadcasts against what is quantized.
        zero_point: z, whole, of the same shape.
    """

    scale: Tensor
    zero_point: Tensor
    bottom: int
    top: int


def affine_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """Codes 0 … 2ᵇ − 1 for the range from ``low`` ≤ 0 to ``high`` ≥ 0; zero has a code."""
    top = 2**bits - 1
    scale = _scale(high - low, top)
    return Grid(scale, (-low / scale).round().clamp(0, top), 0, top)


def symmetric_grid(low: Tensor, high: Tensor, bits: int, signed: bool, narrow: bool) -> Grid:
    """Zero points of 0: codes −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1, or 0 … 2ᵇ − 1 if not ``signed``.

    Args:
        narrow: leave out the lowest code, so that there are as many on either side of zero.
    """
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    bottom = (-top if narrow else -top - 1) if signed else 0
    scale = _scale(high.maximum(-low) if signed else high, top)
    return Grid(scale, torch.zeros_like(scale), bottom, top)


def _scale(length: Tensor, steps: int) -> Tensor:
    """length / steps; 1 for a range of nothing but zero, which any scale represents."""
    scale = length / steps
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


def _centered_codes(x: Tensor, grid: Grid, stochastic: bool, out: Tensor | None = None) -> Tensor:
    """code − zero point, so that it is zero where x is."""
    codes = torch.div(x, grid.scale, out=out)
    if stochastic:
        codes.add_(torch.rand_like(codes)).floor_()
    else:
        codes.round_()
    low, high = grid.bottom - grid.zero_point, grid.top - grid.zero_point
    return torch.clamp(codes, low, high, out=codes)


class _FakeQuantize(torch.autograd.Function):
    """Quantized values; the gradient is passed on where x is not clipped (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, stochastic: bool) -> Tensor:
        ctx.save_for_backward(x, grid.scale, grid.zero_point)
        ctx.ends = grid.bottom, grid.top
        return _centered_codes(x, grid, stochastic).mul_(grid.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        return grad * _inside(x, Grid(scale, zero_point, *ctx.ends)), None, None


def _inside(x: Tensor, grid: Grid) -> Tensor:
    """Where x is nearest to one of the grid's values without being clipped."""
    low = (grid.bottom - grid.zero_point - 0.5) * grid.scale
    high = (grid.top - grid.zero_point + 0.5) * grid.scale
    return (x >= low) & (x <= high)


def affine(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, stochastic: bool = False
) -> Tensor:
    """Δ · (clip(round(x/Δ) + z, 0, 2ᵇ − 1) − z).

    Args:
        x: any shape.
        scale: Δ, above 0, broadcasts against ``x``.
        zero_point: z, whole numbers in 0 … 2ᵇ − 1, likewise.
        bits: b, 2 to 16.
        stochastic: round(v) = ⌊v + u⌋ with u uniform in [0, 1), whose mean is v.

    Returns:
        A tensor of the shape of ``x``; its gradient is that of the clip.
    """
    grid = Grid(widened(scale), widened(zero_point), 0, 2**bits - 1)
    return _FakeQuantize.apply(widened(x), grid, stochastic).to(x.dtype)


class Affine(Quantizer):
    """Values spaced evenly over the range that an observer chose.

    Args:
        formats, signed, channels: as of any quantizer; ``signed`` is then found by the observer.
        observer: ``min_max``, ``moving_average``, ``percentile``, ``mse`` or ``kl``; see
            :mod:`dqnet.quantizers.observers`. In training the first two follow what is trained, a
            range of the others stays as it was calibrated.
        momentum: of the moving average, in [0, 1).
        percentile: p: from the percentile 100 − p to the percentile p; above 50, at most 100.
        rounding: ``nearest``; or in training ``stochastic``, whose mean is the value. The backward
            pass draws again where it needs the input: the weight's gradient is unbiased, too.
        rows: how many ranges there are.
    """

    storage = range(2, MAX_BITS + 1)

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None,
        channels: int | None,
        observer: str,
        momentum: float,
        percentile: float,
        rounding: str,
        rows: int = 1,
    ) -> None:
        super().__init__(formats, signed=signed, channels=channels)
        if rounding not in ROUNDINGS:
            raise unknown_name("rounding", rounding, ROUNDINGS)
        self._new_observer = observer_factory(observer, momentum, percentile)
        self.follows = OBSERVERS[observer].follows
        self._observer: Observer | None = None
        self._stochastic = rounding == "stochastic"
        self.register_buffer("low", torch.zeros(len(self.formats), rows))
        self.register_buffer("high", torch.zeros(len(self.formats), rows))

    def make_grid(self, low: Tensor, high: Tensor, k: int, signed: bool) -> Grid:
        """The grid of format k for ranges of any shape; ``signed``: whether any is below zero."""
        return affine_grid(low, high, self.formats[k].bits)

    def grid(self, x: Tensor, k: int) -> Grid:
        """The grid of format k, which broadcasts against ``x``.

        Raises:
            UserError: if no range was set.
        """
        if not self.ready:
            raise UserError(f"{type(self).__name__} has no range yet: run dqnet.calibrate first")
        shape = (-1, *[1] * (x.dim() - 1)) if self.low.shape[1] > 1 else ()
        low, high = (widened(end[k]).view(shape) for end in (self.low, self.high))
        return self.make_grid(low, high, k, self.signed)

    def forward(self, x: Tensor, k: int) -> Tensor:
        stochastic = self._stochastic and self.training
        return _FakeQuantize.apply(widened(x), self.grid(x, k), stochastic).to(x.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        grid = self.grid(x, k)
        codes = _centered_codes(widened(x), grid, False) + grid.zero_point
        return Codes(codes.to(torch.int32), grid.scale, grid.zero_point)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        rows = self.rows(widened(x))
        if rows.numel():
            self._observer = self._observer or self._new_observer()
            self._observer.see(rows)

    def rows(self, x: Tensor) -> Tensor:
        """What shares a range in each row: finite values ``[R, M]``."""
        raise NotImplementedError

    @torch.no_grad()
    def finish(self) -> None:
        if self._observer is None:
            return
        for k, own in enumerate(self.formats):
            low, high = self._observer.range(self._quantize_as(k), 2**own.bits)
            self.low[k], self.high[k] = low, high
        self._observer = None

    def _quantize_as(self, k: int) -> Quantize:
        def quantize(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
            grid = self.make_grid(low[:, None], high[:, None], k, bool((low < 0).any()))
            return _centered_codes(values, grid, False).mul_(grid.scale)

        return quantize


class AffineWeight(Affine, name="affine", of="weight"):
    """Weights, with a range for each output channel or one for all.

    Args:
        granularity: ``per_channel`` or ``per_tensor``.
        formats, signed, channels, observer, momentum, percentile, rounding: as of :class:`Affine`.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = True,
        channels: int | None = None,
        granularity: str = "per_channel",
        observer: str = "min_max",
        momentum: float = 0.99,
        percentile: float = 99.99,
        rounding: str = "nearest",
    ) -> None:
        if granularity not in GRANULARITIES:
            raise unknown_name("granularity", granularity, GRANULARITIES)
        per_channel = granularity == "per_channel"
        if per_channel and channels is None:
            raise UserError("per_channel needs the number of output channels")
        super().__init__(
            formats, signed=signed, channels=channels, observer=observer, momentum=momentum,
            percentile=percentile, rounding=rounding, rows=channels if per_channel else 1,
        )  # fmt: skip

    def rows(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.low.shape[1] > 1 else x.reshape(1, -1)

    def follow(self, x: Tensor) -> None:
        if self.follows:
            self.observe(x.detach())
            self.finish()


class AffineInput(Affine, name="affine", of="input"):
    """Inputs, with one range.

    Args:
        granularity: ``per_tensor``; a range per channel would have to be undone within the sum that
            a convolution takes over channels.
        formats, signed, channels, observer, momentum, percentile, rounding: as of :class:`Affine`.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = None,
        channels: int | None = None,
        granularity: str = "per_tensor",
        observer: str = "moving_average",
        momentum: float = 0.99,
        percentile: float = 99.99,
        rounding: str = "nearest",
    ) -> None:
        if granularity == "per_channel":
            raise UserError(
                "granularity per_channel is of weights; a layer's input has one range: per_tensor"
            )
        if granularity != "per_tensor":
            raise unknown_name("granularity", granularity, GRANULARITIES)
        super().__init__(
            formats, signed=signed, channels=channels, observer=observer, momentum=momentum,
            percentile=percentile, rounding=rounding,
        )  # fmt: skip
        self._momentum = momentum
        self._grows = observer == "min_max"

    def rows(self, x: Tensor) -> Tensor:
        x = x.reshape(1, -1)
        finite = x.isfinite()
        return x if finite.all() else x[finite][None]

    def finish(self) -> None:
        super().finish()
        self.signed = bool((self.low < 0).any())
        self.signed_form.fill_(self.signed)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        rows = self.rows(widened(x.detach())) if self.follows else x[:0]
        if not rows.numel():
            return
        low, high = rows.amin().clamp_max(0), rows.amax().clamp_min(0)
        if self._grows:
            self.low.clamp_max_(low)
            self.high.clamp_min_(high)
        else:
            self.low.lerp_(low, 1 - self._momentum)
            self.high.lerp_(high, 1 - self._momentum)

    # Fast path

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        grid = self.grid(x, k)
        _centered_codes(x, grid, self._stochastic and self.training, out)
        return grid.scale

    @torch.no_grad()
    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        torch.mul(grad, _inside(x, self.grid(x, k)), out=out)
        return []
