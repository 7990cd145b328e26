"""A convolution that keeps one full-precision weight and runs at any of K precisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.layers.geometry import ConvGeometry
from dqnet.layers.quant_layer import Quantization, QuantLayer
from dqnet.quantizers import Method, Options
from dqnet.recording import refuse_symbols


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` with a quantized weight and a quantized input.

    Args:
        widths: candidate precisions, ascending: bits, each from 1 to 16, or ``"w4a8"``.
        quantizer, options, width_affine: as of :class:`~dqnet.layers.quant_layer.Quantization`.
        signed: whether the input can be negative.
        args, kwargs: those of ``nn.Conv2d``. ``padding="same"`` is allowed with any stride and
            means an output of ``ceil(size / stride)``.
    """

    def __init__(
        self,
        *args: Any,
        widths: Sequence[int | str | Precision],
        quantizer: Method = "dorefa",
        signed: bool = False,
        options: Options = None,
        width_affine: bool = False,
        padding: int | tuple[int, int] | str = 0,
        **kwargs: Any,
    ) -> None:
        same = padding == "same"
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise UserError(f"padding {padding!r} is unknown; valid: a number, same, valid")
            padding = 0
        super().__init__(*args, padding=padding, **kwargs)
        if same and self.padding_mode != "zeros":
            raise UserError("padding='same' goes with padding_mode='zeros' only")
        if self.padding_mode == "zeros":
            margins = {"padding": self.padding, "same": same}
        else:
            repeated = tuple(self._reversed_padding_repeated_twice)
            margins = {"padding": (0, 0), "repeated": repeated, "repeat_mode": self.padding_mode}
        self.geometry = ConvGeometry(
            stride=self.stride, dilation=self.dilation, groups=self.groups, **margins
        )
        how = Quantization(quantizer, options, width_affine)
        self._set_up(widths, how, signed, self.out_channels)

    @classmethod
    def from_float(
        cls,
        conv: nn.Conv2d,
        widths: Sequence[int | str | Precision],
        quantizer: Method = "dorefa",
        signed: bool = False,
        options: Options = None,
        width_affine: bool = False,
    ) -> QuantConv2d:
        """A quantized convolution that shares the parameters of ``conv``."""
        with torch.device("meta"):  # its own weight is replaced at once
            layer = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                stride=conv.stride,
                padding="same" if isinstance(conv, Conv2dSame) else conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                bias=conv.bias is not None,
                padding_mode=conv.padding_mode,
                widths=(1,),
            )
        layer.weight, layer.bias = conv.weight, conv.bias
        how = Quantization(quantizer, options, width_affine)
        layer._set_up(widths, how, signed, layer.out_channels)
        return layer.train(conv.training)

    def forward(self, input: Tensor, choice: Tensor | None = None) -> Tensor:  # noqa: A002
        """Runs every image at its precision.

        Args:
            input: ``[N, C, H, W]``; the name is that of ``nn.Conv2d``.
            choice: one-hot ``[N, K]``. Not needed with one precision, nor inside a converted
                model, whose router gives it.

        Raises:
            UserError: if there are several precisions and no one-hot choice of the right shape, or
                ``input`` is not a batch of real numbers, or not of the images that the router
                routed.
        """
        refuse_symbols(input)
        if input.dim() != 4:
            raise UserError(
                f"QuantConv2d takes [N, C, H, W], not a tensor of {input.dim()} dimensions"
            )
        return self._run(input, choice)
