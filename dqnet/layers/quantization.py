"""How a layer is quantized, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from dqnet.quantizers import Method, Options


@dataclass(frozen=True)
class Quantization:
    """How a layer is quantized.

    Attributes:
        quantizer: a method by name or class, or a pair of them for weight and input.
        options: the quantizers' own arguments; a pair where the two differ.
        width_affine: whether each precision scales and shifts its output by values of its own,
            which are learned (see :mod:`dqnet.layers.width_affine`). Nothing with one precision.
        gradient_bits: what the gradient to the output is quantized to in training (see
            :mod:`dqnet.layers.gradient_bits`); ``None``: it is not.
    """

    quantizer: Method = "dorefa"
    options: Options = None
    width_affine: bool = False
    gradient_bits: int | None = None
