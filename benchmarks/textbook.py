"""The yardstick: every layer at every width for the whole batch, in plain PyTorch under autograd.

``y = Σ_k choice[:, k] · conv(Q_k(x), Q_k(w))`` with DoReFa's quantizers, as the paper's formulas
read and as public code computes them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.layers import QuantConv2d
from dqnet.network import QuantizedModel


class _Round(torch.autograd.Function):
    """Rounding with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def dorefa_weight(weight: Tensor, width: int) -> Tensor:
    """2 · Q(tanh w / (2 · max|tanh w|) + ½) − 1, for 2 bits and more."""
    levels = 2**width - 1
    squashed = torch.tanh(weight)
    unit = squashed / (2 * squashed.abs().max()) + 0.5
    return 2 * _Round.apply(unit * levels) / levels - 1


def dorefa_input(x: Tensor, width: int, signed: bool) -> Tensor:
    """Q(clip(x, 0, 1)), or its signed form."""
    levels = 2**width - 1
    if signed:
        unit = torch.clamp(x, -1, 1) / 2 + 0.5
        return 2 * _Round.apply(unit * levels) / levels - 1
    return _Round.apply(torch.clamp(x, 0, 1) * levels) / levels


class TextbookConv2d(nn.Module):
    """A converted layer in the textbook form; it shares the layer's parameters and router."""

    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.widths, self.signed = layer.widths, layer.input_quantizer.signed
        self.geometry = layer.geometry
        self.affine = layer.affine
        self.router, self.column = layer.router, layer.column

    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """``[N, C, H, W]`` to ``[N, O, H', W']``."""
        if choice is None and len(self.widths) > 1:
            choice, _, _ = self.router.column(self.column, len(x))
        y = None
        weights = [dorefa_weight(self.weight, width) for width in self.widths]
        for k, (width, weight) in enumerate(zip(self.widths, weights, strict=True)):
            if self.affine is not None:
                ratio = (weights[-1].norm() / weight.norm()).detach()
                weight = weight * (ratio * self.affine.gain[k]).view(-1, 1, 1, 1)
            part = self._convolve(dorefa_input(x, width, self.signed), weight)
            if self.affine is not None:
                part = part + self.affine.shift[k].view(-1, 1, 1)
            if choice is not None:
                part = choice[:, k].view(-1, 1, 1, 1) * part
            y = part if y is None else y + part
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        g = self.geometry
        return F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)


def textbook_network(model: QuantizedModel) -> QuantizedModel:
    """A copy of a converted network whose convolutions are in the textbook form.

    It has PyTorch's default memory format, as it would if someone wrote it down.
    """
    model = copy.deepcopy(model)
    for module in model.backbone.modules():
        if isinstance(module, QuantConv2d):  # which stays, so that the network's costs do
            module.forward = TextbookConv2d(module).forward
    return model.to(memory_format=torch.contiguous_format)
