"""A layer's codes in the Winograd domain, where they are quantized again, tap by tap.

Andri, Bussolino, Cipolletta, Cavigelli, Wang 2022, *Going Further With Winograd Convolutions:
Tap-Wise Quantization for Efficient Inference on 4x4 Tiles*, https://arxiv.org/abs/2209.12982:

    Y = Aᵀ [S_w ⊙ S_x ⊙ Σ_c ⌊G w Gᵀ ⊘ S_w⌉ ⊙ ⌊Bᵀ x B ⊘ S_x⌉] A

with whole x and w, the codes of the layer's quantizers, and S of powers of two, one for each tap of
the transformed tile. Taps differ in how large their numbers are: of independent weights those of
G w Gᵀ, m = 4, by a factor of up to 27, so that one scale for all of them leaves few codes to some.
Everything but the division by 576 in G w Gᵀ, which happens once for all images, is an addition, a
shift or a product of small integers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqnet.layers.winograd import Transforms, Winograd
from dqnet.quantizers.trained_threshold import TrainedThreshold


class WinogradDomain(nn.Module):
    """What a layer that is a quantized Winograd convolution has beyond its quantizers.

    Args:
        how: tile, scales and bits.

    Attributes:
        weight_quantizer, input_quantizer: of transformed weights and inputs, in units of the
            layer's own steps.
    """

    def __init__(self, how: Winograd) -> None:
        super().__init__()
        self.how = how
        self.transforms = Transforms(how.tile)
        rows = how.taps if how.scales == "tap" else 1
        self.weight_quantizer = TrainedThreshold(how.bits, rows, how.learned)
        self.input_quantizer = TrainedThreshold(how.bits, rows, how.learned)

    @property
    def ready(self) -> bool:
        """Whether the scales are set."""
        return self.weight_quantizer.ready and self.input_quantizer.ready

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Sees a batch of inputs ``[N, C, H, W]``, margins included, before their quantization."""
        self.input_quantizer.observe(self.transforms.input(x))

    @torch.no_grad()
    def complete(self, weight: Tensor, step: Tensor) -> None:
        """Sets the scales from what was observed.

        Args:
            weight: codes ``[O, C, 3, 3]``.
            step: of the input's codes.
        """
        self.weight_quantizer.observe(self.transforms.weight(weight))
        self.weight_quantizer.complete()
        self.input_quantizer.observed_in(step)
        self.input_quantizer.complete()

    def forward(self, x: Tensor, weight: Tensor, exact: bool) -> Tensor:
        """The convolution of codes.

        Args:
            x: whole numbers ``[N, C, H, W]``, margins included, of at most 16 bits.
            weight: whole numbers ``[O, C, 3, 3]``, likewise.
            exact: whether every sum is to be exact, as of integers; transformed codes always are.

        Returns:
            ``[N, O, H − 2, W − 2]`` in units of the product of both steps; float64 if exact.
        """
        inputs = self.input_quantizer(self.transforms.input(x))
        weights = self.weight_quantizer(self.transforms.weight(weight))
        largest_sum = 4 ** (self.how.bits - 1) * x.shape[1]
        if exact and largest_sum > 1 / torch.finfo(x.dtype).eps:
            inputs, weights = inputs.double(), weights.double()
        products = inputs @ weights
        products = products.double() if exact else products
        return self.transforms.output(products, len(x), x.shape[2] - 2, x.shape[3] - 2)

    def extra_repr(self) -> str:
        return f"{self.how}, bits={self.how.bits}, scales={self.how.scales!r}"
