"""A fully connected layer with a quantized weight and a quantized input, at one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.quantizers import Quantizer, build_quantizer


class QuantLinear(nn.Linear):
    """``nn.Linear``, static: one width for every image.

    Args:
        widths: one bit-width, from 1 to 16, as a sequence.
        quantizer, signed, options: as for :class:`dqnet.layers.QuantConv2d`.
        args, kwargs: those of ``nn.Linear``.
    """

    def __init__(
        self,
        *args: Any,
        widths: Sequence[int],
        quantizer: str | type[Quantizer] = "dorefa",
        signed: bool = False,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.quantizer = build_quantizer(quantizer, widths, signed, options)
        if len(self.widths) != 1:
            raise UserError(f"QuantLinear is static: one width, not {self.widths}")
        self.to(self.weight)  # device= and dtype= are of all parameters

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        widths: Sequence[int],
        quantizer: str | type[Quantizer] = "dorefa",
        signed: bool = False,
        options: dict[str, Any] | None = None,
    ) -> QuantLinear:
        """A quantized layer that shares the parameters of ``linear``."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            widths=widths,
            quantizer=quantizer,
            signed=signed,
            options=options,
        ).to(linear.weight)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.quantizer.widths

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear names it
        """``[N, ..., in_features]`` to ``[N, ..., out_features]``."""
        self.quantizer.prepare(self.weight, input)
        (weight,) = self.quantizer.quantize_weight(self.weight)
        return F.linear(self.quantizer.quantize_input(input, self.widths[0]), weight, self.bias)
