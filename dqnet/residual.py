"""Quantizers between layers, so that every value of a network is a code of few bits.

A layer quantizes what it reads. What is added, pooled or concatenated is read by no layer, and
stays float32 unless it has a quantizer of its own. Scales are powers of two: sums of codes on such
grids are exact, so that every runtime rounds them alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.graph import Operation, Operations
from dqnet.processes import gathered
from dqnet.quantizers.fixed_point import FixedPointInput

#: read and write values that no layer quantizes
BETWEEN = ("add", "concat", "mean", "average_pool", "max_pool")
#: return numbers of the value that they read, and no others
MOVES = ("slice", "pad", "flatten")


class ValueQuantizer(nn.Module):
    """Quantizes what a module returns, as a forward hook of it.

    Args:
        bits: of the codes.
        signed: whether the value can be negative.

    Attributes:
        unquantized, calibrating: as of :class:`~dqnet.layers.quant_layer.QuantLayer`.
    """

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__()
        self.output_quantizer = FixedPointInput((Format(bits),), signed=signed)
        self.unquantized = False
        self.calibrating = False

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """To be registered with the module; ``None``: its output stays as it is."""
        if isinstance(output, fx.Proxy):
            return None
        if self.calibrating:
            self.output_quantizer.observe(gathered(output.detach()))
        if self.calibrating or self.unquantized:
            return None
        return self(output)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.output_quantizer.ready:
            self.output_quantizer.prepare(gathered(x.detach()))
        return self.output_quantizer(x, 0)


def check_residual(bits: int | None) -> None:
    """Raises UserError for bits that 8-bit hardware has not."""
    if bits is not None and (isinstance(bits, bool) or bits not in range(2, 9)):
        raise UserError(f"residual {bits!r} must be 2 to 8 bits, or none for float residuals")


def places(steps: Operations, routed: set[str]) -> dict[str, bool]:
    """Which modules' outputs need a quantizer of their own, and whether they can be negative.

    Those are values that an addition, a pooling or a concatenation reads or writes, that several
    operations read, or that a routed layer reads, whose own codes differ from image to image. A
    value that one static layer alone reads is quantized by that layer.

    Args:
        steps: of the float network.
        routed: names of layers that have several precisions.

    Raises:
        UserError: for such a value that no module returns.
    """
    wanted: set[int] = set()
    for index, step in enumerate(steps.steps):
        if step.kind in BETWEEN:
            wanted |= {_source(steps, i) for i in step.inputs}
            wanted.add(_end(steps, index))
        elif step.kind == "layer" and step.name in routed:
            wanted.add(_source(steps, step.inputs[0]))
        if len(steps.readers(index)) > 1:
            wanted.add(_source(steps, index))
    found: dict[str, bool] = {}
    for index in sorted(wanted):
        step = steps.steps[index]
        if step.kind in ("image", "max_pool") or _one_layer_reads(steps, index, routed):
            continue
        if not step.result_of:
            raise UserError(
                f"residual: no module returns the output of {step.name}, so that it cannot be "
                "quantized: put a torch.nn.Identity behind it, or export with form=exact"
            )
        found[step.result_of[0]] = not _never_negative(steps, index)
    return found


def _source(steps: Operations, index: int) -> int:
    """Where the numbers of a value were computed."""
    while steps.steps[index].kind in (*MOVES, "max_pool"):
        index = steps.steps[index].inputs[0]
    return index


def _end(steps: Operations, index: int) -> int:
    """The value itself, or what an activation that alone reads it makes of it."""
    readers = steps.readers(index)
    if len(readers) == 1 and readers[0].kind == "clip":
        return steps.steps.index(readers[0])
    return _source(steps, index)


def _one_layer_reads(steps: Operations, index: int, routed: set[str]) -> bool:
    readers = steps.readers(index)
    while len(readers) == 1 and readers[0].kind in MOVES:
        readers = steps.readers(steps.steps.index(readers[0]))
    return (len(readers) == 1 and _is_static(readers[0], routed)) or not readers


def _is_static(step: Operation, routed: set[str]) -> bool:
    return step.kind == "layer" and step.name not in routed


def _never_negative(steps: Operations, index: int) -> bool:
    step = steps.steps[index]
    if step.kind == "clip":
        return bool(torch.as_tensor(step.options["low"] >= 0).all())
    if step.kind in (*BETWEEN, *MOVES):
        return all(_never_negative(steps, i) for i in step.inputs)
    return False
