"""A quantized weight in a packed file: its description and its tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqnet.costs.size import StoredWeight
from dqnet.export.coding import Coded, code, decoded
from dqnet.formats import Format, Minifloat
from dqnet.quantizers import Codes
from dqnet.quantizers.minifloat import minifloat_table


def written(weight: StoredWeight, coding: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A weight's entry in the description, and its tensors.

    Args:
        weight: on the CPU.
        coding: one of :data:`dqnet.export.coding.CODINGS`.
    """
    codes, bits = weight.codes, weight.format.bits
    offset = int(codes.codes.min())
    coded = code(codes_from_zero(codes, offset, bits), bits, coding)
    if coded.coding == "none":
        coded = code((codes.codes.flatten() - offset).numpy(), bits, "none")
    name = _name(weight.layer, str(weight.format))
    tensors = {
        f"{name}.codes": torch.from_numpy(np.concatenate(coded.parts)),
        f"{name}.scale": codes.scale,
    }
    if weight.has_zero_point:
        tensors[f"{name}.zero_point"] = codes.zero_point
    if codes.basis is not None:
        tensors[f"{name}.basis"] = codes.basis
    entry = {
        "layer": weight.layer,
        "format": str(weight.format),
        "shape": list(codes.codes.shape),
        "offset": offset,
        "block": codes.block,
        "table": weight.table,
    }
    if codes.basis is not None:
        entry["weight_shape"] = list(codes.shape)
    if coded.coding != "none":
        parts = [len(part) for part in coded.parts]
        entry["coding"] = [coded.coding, coded.gap_bits, coded.entries, *parts]
    return entry, tensors


def read(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codes:
    """A weight's codes, from its entry in the description and the tensors of the file."""
    own = Format.parse(entry["format"])
    name = _name(entry["layer"], entry["format"])
    scale = tensors[f"{name}.scale"]
    zero_point = tensors.get(f"{name}.zero_point", torch.zeros_like(scale))
    table = None if entry["table"] is None else tensors[f"table.{entry['table']}"]
    if isinstance(own, Minifloat):
        table = minifloat_table(own).to(scale)
    shape, content = torch.Size(entry["shape"]), tensors[f"{name}.codes"].numpy()
    basis = tensors.get(f"{name}.basis")
    of = None if basis is None else torch.Size(entry["weight_shape"])
    nothing = torch.zeros(shape, dtype=torch.int32)
    codes = Codes(nothing, scale, zero_point, table, entry["block"], basis, of)
    coding, *numbers = entry.get("coding", ("none", 0, shape.numel(), 0, 0, 0, len(content)))
    parts = np.split(content, np.cumsum(numbers[2:])[:-1])
    sequence = decoded(Coded(coding, *numbers[:2], tuple(parts)), own.bits, shape.numel())
    found = torch.from_numpy(sequence).view(shape)
    offset = entry["offset"]
    if coding != "none":
        found = (found + zero_codes(codes, offset) - offset).remainder(2**own.bits)
    return replace(codes, codes=(found + offset).to(torch.int32))


def codes_from_zero(codes: Codes, offset: int, bits: int) -> np.ndarray:
    """The codes ``[M]`` counted from that of zero, modulo 2ᵇ: so 0 is the number zero.

    A second code of zero, as the −0 of small floats, becomes the first.

    Args:
        codes: of a weight.
        offset: the smallest one.
        bits: b.
    """
    counted = (codes.codes - zero_codes(codes, offset)).remainder(2**bits)
    if codes.table is not None:
        counted[codes.table[codes.codes.long()] == 0] = 0
    return counted.flatten().numpy()


def zero_codes(codes: Codes, offset: int) -> Tensor:
    """The code of zero, or the next one to it, int32; it broadcasts against the codes."""
    if codes.table is None:
        return codes.zero_point.round().to(torch.int32)
    zeros = (codes.table == 0).nonzero()
    return torch.tensor(int(zeros[0]) if len(zeros) else offset, dtype=torch.int32)


def _name(layer: str, own: str) -> str:
    return f"{layer}.weight.{own}"
