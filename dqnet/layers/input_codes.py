"""A layer's input at each of its precisions, as the routed layer computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dqnet.quantizers import Quantizer
from dqnet.quantizers.half import HALF


@dataclass(frozen=True)
class InputCodes:
    """The fast path of an input's quantizer, for the precisions of a layer.

    Attributes:
        quantizer: of the input.
        formats: for each of K precisions, the index of its input format.
    """

    quantizer: Quantizer
    formats: tuple[int, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.quantizer.parameters())

    def write(self, x: Tensor, k: int, out: Tensor, as_codes: bool) -> Tensor | float:
        """Writes Q_k(x) = s · codes to ``out``, which may be ``x``, or the codes alone; returns s.

        Where the values themselves were written, s is 1.
        """
        own = self.formats[k]
        if x.dtype in HALF:  # codes are written in place, and half precision does not hold them
            wide = x.float()
            out.copy_(wide.mul_(self.quantizer.codes_into(wide, own, wide)))
            return 1.0
        scale = self.quantizer.codes_into(x, own, out)
        if as_codes:
            return scale
        out.mul_(scale)
        return 1.0

    def gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        """Writes the gradient to ``x``, and returns those to the quantizer's parameters."""
        own = self.formats[k]
        if x.dtype not in HALF:
            return self.quantizer.input_gradients(grad, x, own, out)
        wide = grad.float()
        grads = self.quantizer.input_gradients(wide, x.float(), own, wide)
        out.copy_(wide)
        return grads
