"""A fully connected layer that keeps one full-precision weight and runs at any of K precisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.layers.geometry import LinearGeometry
from dqnet.layers.quant_layer import QuantLayer
from dqnet.layers.quantization import Quantization
from dqnet.quantizers import Method, Options
from dqnet.recording import refuse_symbols


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` with a quantized weight and a quantized input: a convolution of size 1.

    Args:
        widths, quantizer, signed, options, width_affine: as for
            :class:`dqnet.layers.QuantConv2d`.
        args, kwargs: those of ``nn.Linear``.
    """

    geometry = LinearGeometry()

    def __init__(
        self,
        *args: Any,
        widths: Sequence[int | str | Precision],
        quantizer: Method = "dorefa",
        signed: bool = False,
        options: Options = None,
        width_affine: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        how = Quantization(quantizer, options, width_affine)
        self._set_up(widths, how, signed, self.out_features)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        widths: Sequence[int | str | Precision],
        quantizer: Method = "dorefa",
        signed: bool = False,
        options: Options = None,
        width_affine: bool = False,
    ) -> QuantLinear:
        """A quantized layer that shares the parameters of ``linear``."""
        with torch.device("meta"):  # its own weight is replaced at once
            layer = cls(
                linear.in_features, linear.out_features, bias=linear.bias is not None, widths=(1,)
            )
        layer.weight, layer.bias = linear.weight, linear.bias
        how = Quantization(quantizer, options, width_affine)
        layer._set_up(widths, how, signed, layer.out_features)
        return layer.train(linear.training)

    def forward(self, input: Tensor, choice: Tensor | None = None) -> Tensor:  # noqa: A002
        """``[N, ..., in_features]`` to ``[N, ..., out_features]``, every image at its precision.

        Args:
            input: the name is that of ``nn.Linear``.
            choice: one-hot ``[N, K]``, as for :class:`dqnet.layers.QuantConv2d`.

        Raises:
            UserError: if there are several precisions and no one-hot choice of the right shape.
        """
        refuse_symbols(input)
        several = len(self.precisions) > 1
        if several and input.dim() < 2:
            raise UserError("a routed QuantLinear takes [N, ..., C]: a batch of images")
        return self._run(input, choice, grouped=several)
