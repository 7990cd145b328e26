"""What has to be stored of a network so that it can be run, and how many bytes that is.

Of a quantized layer's weight that is its codes, in every format that the layer may run at: a routed
layer of widths 2, 3 and 4 needs 9 bits for each weight. The float weight is not stored, as some
methods scale all of it for each format anew. All else (biases, norms and their statistics, what is
kept in full precision, the controller, what inputs are quantized with) is stored as it is, 4 bytes
for a float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqnet.costs.base import cost_model
from dqnet.errors import UserError
from dqnet.formats import FULL_PRECISION_BITS, Format, Minifloat, Precision
from dqnet.layers import QuantLayer
from dqnet.plan import LayerPlan
from dqnet.quantizers import Codes

#: of a batch norm; in evaluation nothing reads it
_UNREAD = "num_batches_tracked"


@cost_model("size")
@dataclass(frozen=True)
class Size:
    """Bytes of the weights that an image is computed with: their elements at their bits.

    Of a static network they are what is stored, but for scales, biases and norms: those are in
    :func:`weight_bytes`.
    """

    unit: str = "bytes"

    def layer(self, layer: LayerPlan, precision: Precision | None) -> float:
        """Bytes of the layer's weight."""
        bits = FULL_PRECISION_BITS if precision is None else precision.weight.bits
        return layer.weights * bits / 8


def peak_activation_bytes(layers: Iterable[LayerPlan]) -> float:
    """The most bytes that one layer's input and output need together, for one image.

    Both count at the bits of the layer's input, of a routed layer's candidates at the most. What is
    kept for a later layer meanwhile, as beside a residual block, is not in it.
    """

    def bits(layer: LayerPlan) -> int:
        return max((own.input.bits for own in layer.precisions), default=FULL_PRECISION_BITS)

    return max(((own.inputs + own.outputs) * bits(own) / 8 for own in layers), default=0.0)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A layer's weight in one format.

    Attributes:
        layer: its module's name.
        format: of the weight.
        codes: on the CPU.
        table: the index of its table in those of the network; ``None``: it has none, or one that
            follows from the name of its format (:class:`~dqnet.formats.Minifloat`).
    """

    layer: str
    format: Format
    codes: Codes
    table: int | None

    @property
    def has_zero_point(self) -> bool:
        """Whether it is stored; 0 is not."""
        return bool(self.codes.zero_point.any())

    @property
    def code_bytes(self) -> int:
        """Codes at their bits, filled up to a whole byte."""
        return -(-self.codes.codes.numel() * self.format.bits // 8)

    @property
    def nbytes(self) -> int:
        """Codes, scales, zero points and bases."""
        parts = [self.codes.scale, self.codes.basis]
        if self.has_zero_point:
            parts.append(self.codes.zero_point)
        return self.code_bytes + sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True, eq=False)
class Contents:
    """All that is stored of a network.

    Attributes:
        weights: of the quantized layers.
        tables: different ones, each stored once.
        tensors: all else, by its name in the state dict, on the CPU.
    """

    weights: tuple[StoredWeight, ...]
    tables: tuple[Tensor, ...]
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.weights, *self.tables, *self.tensors.values()))


@torch.no_grad()
def contents(model: nn.Module) -> Contents:
    """What has to be stored of a converted or a float network.

    Raises:
        UserError: if a quantizer of weights has no codes, or waits for data.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantLayer)}
    weights: list[StoredWeight] = []
    tables: list[Tensor] = []
    for name, layer in layers.items():
        for own, codes in layer.encoded_weights():
            codes = codes.cpu()
            table = None
            if codes.table is not None and not isinstance(own, Minifloat):
                table = next((i for i, t in enumerate(tables) if torch.equal(t, codes.table)), None)
                if table is None:
                    table = len(tables)
                    tables.append(codes.table)
            weights.append(StoredWeight(name, own, codes, table))
    replaced = tuple(f"{name}.{part}" for name in layers for part in ("weight", "weight_quantizer"))
    replaced = {name for name in model.state_dict() if name.startswith(replaced)}
    tensors = {
        name: value.cpu()
        for name, value in model.state_dict().items()
        if name not in replaced and name.rpartition(".")[2] != _UNREAD
    }
    return Contents(tuple(weights), tuple(tables), tensors)


def weight_bytes(model: nn.Module) -> int | None:
    """The bytes of a packed network; ``None`` if a method does not say what its codes are."""
    try:
        return contents(model).nbytes
    except UserError:
        return None
