"""A convolution that keeps one full-precision weight and runs at any of K widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers.groups import Groups
from dqnet.layers.routed_conv import ConvGeometry, routed_conv2d
from dqnet.layers.router import Router
from dqnet.layers.weight_cache import WeightCache
from dqnet.layers.width_affine import WidthAffine
from dqnet.quantizers import Quantizer, build_quantizer


class QuantConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a quantized weight and a quantized input.

    With one width it is a static quantized convolution. With several, each image of the batch
    runs at the width that ``choice`` gives it.

    Args:
        widths: candidate bit-widths, ascending, each from 1 to 16.
        quantizer: the name or the class of a number format.
        signed: whether the input can be negative.
        options: the quantizer's own arguments.
        width_affine: whether each width scales and shifts its output by values of its own, which
            are learned (see :mod:`dqnet.layers.width_affine`). Nothing with one width.
        args, kwargs: those of ``nn.Conv2d``. ``padding="same"`` is allowed with any stride and
            means an output of ``ceil(size / stride)``.
    """

    def __init__(
        self,
        *args: Any,
        widths: Sequence[int],
        quantizer: str | type[Quantizer] = "dorefa",
        signed: bool = False,
        options: dict[str, Any] | None = None,
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
        self.quantizer = build_quantizer(quantizer, widths, signed, options)
        self.affine = _affine(self, width_affine)
        self.router: Router | None = None
        self.column: int | None = None
        self._weights = WeightCache()
        self.to(self.weight)  # device= and dtype= are of all parameters

    @classmethod
    def from_float(
        cls,
        conv: nn.Conv2d,
        widths: Sequence[int],
        quantizer: str | type[Quantizer] = "dorefa",
        signed: bool = False,
        options: dict[str, Any] | None = None,
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
        layer.quantizer = build_quantizer(quantizer, widths, signed, options)
        layer.affine = _affine(layer, width_affine)
        layer.to(conv.weight)  # its device and type
        return layer.train(conv.training)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.quantizer.widths

    # Group sizes differ from batch to batch: compiled, each new one would be compiled anew.
    @torch.compiler.disable
    def forward(self, input: Tensor, choice: Tensor | None = None) -> Tensor:  # noqa: A002
        """Runs every image at its width.

        Args:
            input: ``[N, C, H, W]``; the name is that of ``nn.Conv2d``.
            choice: one-hot ``[N, K]``. Not needed with one width, nor inside a converted model,
                whose router gives it.

        Raises:
            UserError: if there are several widths and no one-hot choice of the right shape, or
                ``input`` is no batch of real numbers, or not of the images that the router routed.
        """
        x = input
        if x.dim() != 4:
            raise UserError(f"QuantConv2d takes [N, C, H, W], not a tensor of {x.dim()} dimensions")
        if not x.is_floating_point():
            raise UserError(f"QuantConv2d takes floating-point images, not {x.dtype}")
        choice, groups, alternatives = self._routing(x, choice)
        self.quantizer.prepare(self.weight, x)
        weights, gain = self._quantized_weights()
        bias = self.bias
        if self.affine is not None:
            bias = self.affine.shift if bias is None else self.affine.shift + bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weights = x.to(dtype), tuple(w.to(dtype) for w in weights)
            bias = None if bias is None else bias.to(dtype)
        return routed_conv2d(
            x, choice, weights, bias, groups, self.geometry, self.quantizer, alternatives, gain
        )

    def train(self, mode: bool = True) -> QuantConv2d:
        """As of any module; quantized weights that evaluation has kept are dropped."""
        self._weights.clear()
        return super().train(mode)

    def _quantized_weights(self) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The weight at every width, and the gain ``[K, O]`` of each.

        In evaluation computed once, until a parameter changes (what of it may go unseen on a GPU:
        :class:`~dqnet.layers.weight_cache.WeightCache`); then weights contain their gain.
        """
        affine = self.affine
        if self.training or torch.is_grad_enabled():
            self._weights.clear()
            weights = self.quantizer.quantize_weight(self.weight)
            return weights, None if affine is None else affine.gains(weights)

        def compute() -> tuple[Tensor, ...]:
            weights = self.quantizer.quantize_weight(self.weight)
            return weights if affine is None else affine.scale(weights)

        of_affine = () if affine is None else (affine.gain,)  # the shift is no part of it
        parameters = (self.weight, *self.quantizer.parameters(), *of_affine)
        return self._weights.get(parameters, compute), None

    def _routing(
        self, x: Tensor, choice: Tensor | None
    ) -> tuple[Tensor | None, Groups, Groups | None]:
        if len(self.widths) == 1:
            return None, Groups((len(x),)), None
        if choice is None:
            if self.router is None or self.column is None:
                raise UserError(
                    f"a layer with widths {self.widths} needs a choice [N, {len(self.widths)}]"
                )
            return self.router.column(self.column, len(x))
        check_one_hot(choice, (len(x), len(self.widths)))
        if not choice.is_floating_point():
            choice = choice.to(x.dtype)
        return choice, Groups.of(choice), None


def _affine(layer: QuantConv2d, wanted: bool) -> WidthAffine | None:
    count = len(layer.widths)
    return WidthAffine(count, layer.out_channels) if wanted and count > 1 else None


def check_one_hot(choice: Tensor, shape: tuple[int, ...]) -> None:
    """Raises UserError unless ``choice`` has the shape and one 1 among zeros on its last axis."""
    if choice.shape != shape:
        raise UserError(f"the choice has shape {list(choice.shape)}, it must be {list(shape)}")
    values = choice.detach()
    if not bool((((values == 0) | (values == 1)).all(-1) & (values.sum(-1) == 1)).all()):
        raise UserError("the choice must be one-hot: one 1 per image and layer, else zeros")
