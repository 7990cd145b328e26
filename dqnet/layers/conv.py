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
from dqnet.layers.quant_layer import QuantLayer
from dqnet.layers.quantization import Quantization
from dqnet.layers.winograd import Winograd, why_direct
from dqnet.layers.winograd_domain import WinogradDomain
from dqnet.processes import gathered
from dqnet.quantizers import Method, Options
from dqnet.quantizers.affine import Affine
from dqnet.quantizers.fixed_point import FixedPoint
from dqnet.quantizers.half import widened
from dqnet.quantizers.lsq import LSQ
from dqnet.quantizers.straight_through import straight_through
from dqnet.recording import refuse_symbols, tracer

#: quantizers whose numbers are whole multiples of a step
WHOLE = (Affine, LSQ, FixedPoint)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` with a quantized weight and a quantized input.

    Attributes:
        winograd: how it multiplies if it is a Winograd convolution; ``None``: directly.

    Args:
        widths: candidate precisions, ascending: bits, each from 1 to 16, or ``"w4a8"``.
        quantizer, options, width_affine: as of :class:`~dqnet.layers.quantization.Quantization`.
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
        self.winograd: WinogradDomain | None = None
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

    def use_winograd(self, how: Winograd) -> None:
        """Makes it a quantized Winograd convolution (:mod:`dqnet.layers.winograd_domain`).

        Raises:
            UserError: unless it is a 3 x 3 convolution of stride 1, without dilation or groups, has
                one precision, and its numbers are whole multiples of a step.
        """
        reason = why_direct(self)
        if reason is not None:
            raise UserError(
                f"a Winograd convolution is 3 x 3, stride 1, of one group: not {reason}"
            )
        if len(self.precisions) > 1:
            raise UserError(
                f"a Winograd convolution has one precision, not several as {self.widths}"
            )
        for quantizer in (self.weight_quantizer, self.input_quantizer):
            if not isinstance(quantizer, WHOLE) or quantizer.formats[0].bits < 2:
                raise UserError(
                    "a Winograd convolution needs numbers that are whole multiples of a step, of 2 "
                    "bits and more: affine, symmetric, lsq or fixed_point, not "
                    f"{type(quantizer).__name__} at {quantizer.formats[0]}"
                )
        self.winograd = WinogradDomain(how).to(self.weight)

    def observe(self, x: Tensor) -> None:
        super().observe(x)
        if self.winograd is not None:
            self.winograd.observe(self._with_margins(gathered(x.detach())))

    def complete(self) -> None:
        super().complete()
        if self.winograd is not None:
            self.winograd.complete(self._weight_codes(self.norm_scale())[0], self._step())

    def prepare(self, x: Tensor, scale: Tensor | None = None) -> None:
        super().prepare(x, scale)
        if self.winograd is not None and not self.winograd.ready and x.isfinite().any():
            self.winograd.observe(self._with_margins(gathered(x.detach())))
            self.winograd.complete(self._weight_codes(scale)[0], self._step())

    def _with_margins(self, x: Tensor) -> Tensor:
        return self.geometry.padded(self.geometry.repeat(x), self.weight)

    def _step(self) -> Tensor:
        """Of the input's codes, a scalar."""
        return self.input_quantizer.encode(self.weight.new_zeros(1), 0).scale

    def _weight_codes(self, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of the quantized weight around zero, and their step, a scalar or ``[O, 1, 1, 1]``.

        Args:
            scale: from :meth:`norm_scale`.
        """
        step = self.weight_quantizer.encode(self.weight_to_quantize(scale), 0).scale
        if scale is not None:
            step = step / scale.detach().masked_fill(scale == 0, 1)
        (weight,) = self.quantized_weights(scale)
        return _whole(weight, step), step

    def _run_quantized(self, x: Tensor, choice: Tensor | None, grouped: bool) -> Tensor:
        if self.winograd is None:
            return super()._run_quantized(x, choice, grouped)
        return self._run_winograd(x) if tracer() is not None else self._run_uncompiled(x)

    @torch.compiler.disable  # what quantizers take from the first batch is data
    def _run_uncompiled(self, x: Tensor) -> Tensor:
        return self._run_winograd(x)

    def _run_winograd(self, x: Tensor) -> Tensor:
        """The layer's output; in evaluation every sum is exact, whatever the order."""
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        x = widened(x)
        scale = self.norm_scale(x)
        self.prepare(x, scale)
        weight, weight_step = self._weight_codes(scale)
        step = self._step()
        codes = self._with_margins(_whole(self.quantized_input(x), step))
        with torch.autocast(device, enabled=False):
            y = self.winograd(codes, weight, exact=not self.training)
        y = y * (step.to(y.dtype) * weight_step.to(y.dtype)).view(-1, 1, 1)
        if self.bias is not None:
            y = y + self.bias.view(-1, 1, 1)
        return y.to(dtype)


def _whole(quantized: Tensor, step: Tensor) -> Tensor:
    """Quantized numbers in units of their step, which is a constant to the gradient."""
    ratio = quantized / step
    return straight_through(ratio, ratio.detach().round())
