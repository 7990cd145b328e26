"""Where a layer's weights meet its input: what is the same at every precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Geometry(ABC):
    """A linear map of an input by a weight, image by image, and its gradients."""

    def repeat(self, x: Tensor) -> Tensor:
        """The input with its repeated margins; itself where there are none."""
        return x

    def repeat_backward(self, grad: Tensor, like: Tensor) -> Tensor:
        """The gradient to ``x`` of :meth:`repeat`; ``like`` has the shape of x."""
        return grad

    @abstractmethod
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The output of ``[N, ...]``."""

    @abstractmethod
    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients to ``x`` and to ``weight``, those that are needed."""

    @abstractmethod
    def sum_positions(self, grad: Tensor) -> Tensor:
        """The sum over the positions of an image: ``[N, ...]`` to ``[N, O]``."""


@dataclass(frozen=True)
class ConvGeometry(Geometry):
    """Where the taps of a convolution fall.

    Attributes:
        same: output size ``ceil(input / stride)``, zeros added as needed, the odd one at the
            right and at the bottom (PyTorch's and TensorFlow's "same"); ``padding`` is then 0.
        repeated: how far the input is repeated at its left, right, top and bottom, as
            ``repeat_mode`` says; empty where padding is zeros. ``padding`` is then 0.
        repeat_mode: ``F.pad``'s name of it.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    same: bool = False
    repeated: tuple[int, ...] = ()
    repeat_mode: str = "reflect"

    def repeat(self, x: Tensor) -> Tensor:
        return F.pad(x, self.repeated, mode=self.repeat_mode) if self.repeated else x

    def repeat_backward(self, grad: Tensor, like: Tensor) -> Tensor:
        if not self.repeated:
            return grad
        with torch.enable_grad():
            x = torch.empty_like(like).requires_grad_()
            return torch.autograd.grad(self.repeat(x), x, grad)[0]

    def sum_positions(self, grad: Tensor) -> Tensor:
        return grad.sum((2, 3))

    def margins(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Left, right, top and bottom zeros of the "same" form."""
        margins = []
        for axis in (1, 0):
            size, stride = x.shape[axis - 2], self.stride[axis]
            reach = (weight.shape[axis - 2] - 1) * self.dilation[axis] + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            margins += [total // 2, total - total // 2]
        return tuple(margins)

    def padded(self, x: Tensor, weight: Tensor) -> Tensor:
        """The input with its zeros around it."""
        vertical, horizontal = self.padding
        zeros = (horizontal, horizontal, vertical, vertical)
        return F.pad(x, self.margins(x, weight) if self.same else zeros)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.same:
            x = self.padded(x, weight)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        shape = x.shape
        if self.same:
            left, _, top, _ = margins = self.margins(x, weight)
            x = F.pad(x, margins)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0),
            self.groups, (need_x, need_weight, False),
        )  # fmt: skip
        if self.same and need_x:
            grad_x = grad_x[..., top : top + shape[-2], left : left + shape[-1]]
        return grad_x, grad_weight


class LinearGeometry(Geometry):
    """A fully connected layer on ``[N, C]``, or at every position of ``[N, ..., C]``."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_x = grad @ weight if need_x else None
        grad_weight = None
        if need_weight:
            grad_weight = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return grad_x, grad_weight

    def sum_positions(self, grad: Tensor) -> Tensor:
        return grad.flatten(1, -2).sum(1) if grad.dim() > 2 else grad
