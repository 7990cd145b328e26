"""Affine quantization: a scale and a zero point from an observed range.

Krishnamoorthi 2018, *Quantizing deep convolutional networks for efficient inference: A whitepaper*,
https://arxiv.org/abs/1806.08342. Quantizer: section 2.1, eqs. 1 to 4; stochastic rounding: section
2.3; gradients: section 2.4, eq. 11; per channel: section 3.1. That zero is represented exactly, so
that padding is: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqnet.errors import UserError, unknown_name
from dqnet.formats import MAX_BITS, Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.codes import Codes
from dqnet.quantizers.granularity import check_of_input
from dqnet.quantizers.grid import FakeQuantize, Grid, affine_grid, centered_codes, pass_unclipped
from dqnet.quantizers.half import widened
from dqnet.quantizers.observers import OBSERVERS, Observer, observer_factory
from dqnet.quantizers.observers.base import Quantize
from dqnet.quantizers.one_pass import extremes, finite_values

GRANULARITIES = ("per_tensor", "per_channel")
ROUNDINGS = ("nearest", "stochastic")


class Affine(Quantizer):
    """Values spaced evenly over the range that an observer chose.

    Args:
        formats, options: as of any quantizer; ``signed`` is then found by the observer.
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
        observer: str,
        momentum: float = 0.99,
        percentile: float = 99.99,
        rounding: str = "nearest",
        rows: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(formats, **options)
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
        return FakeQuantize.apply(widened(x), self.grid(x, k), stochastic).to(x.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor, k: int) -> Codes:
        grid = self.grid(x, k)
        codes = centered_codes(widened(x), grid, False) + grid.zero_point
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
            return centered_codes(values, grid, False).mul_(grid.scale)

        return quantize


class AffineWeight(Affine, name="affine", of="weight"):
    """Weights, with a range for each output channel or one for all.

    Args:
        granularity: ``per_channel`` or ``per_tensor``.
        formats, channels, observer, options: as of :class:`Affine`.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        channels: int | None = None,
        granularity: str = "per_channel",
        observer: str = "min_max",
        **options: Any,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise unknown_name("granularity", granularity, GRANULARITIES)
        per_channel = granularity == "per_channel"
        if per_channel and channels is None:
            raise UserError("per_channel needs the number of output channels")
        rows = channels if per_channel else 1
        super().__init__(formats, channels=channels, observer=observer, rows=rows, **options)

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
        formats, observer, options: as of :class:`Affine`.
    """

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        granularity: str = "per_tensor",
        observer: str = "moving_average",
        **options: Any,
    ) -> None:
        check_of_input(granularity)
        super().__init__(formats, observer=observer, **options)

    def rows(self, x: Tensor) -> Tensor:
        return finite_values(x)[None]

    def finish(self) -> None:
        super().finish()
        self.signed = bool((self.low < 0).any())
        self.signed_form.fill_(self.signed)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        if self.follows and x.numel():
            old, batch = (self.low, self.high), extremes(widened(x.detach()))
            for own, end in zip(old, self._new_observer().merged(old, batch), strict=True):
                # A batch with values that are not finite changes nothing. Which it is, is not
                # asked, for which a GPU would be waited for.
                own.copy_(end.where(end.isfinite(), own))

    # Fast path

    @torch.no_grad()
    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor:
        grid = self.grid(x, k)
        centered_codes(x, grid, self._stochastic and self.training, out)
        return grid.scale

    @torch.no_grad()
    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        pass_unclipped(grad, x, self.grid(x, k), out)
        return []
