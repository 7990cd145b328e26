"""A trained network with its weights as codes, in one file.

The file is one of safetensors, which many programs read. Its tensors are

- ``LAYER.weight.FORMAT.codes``, uint8: the codes of a quantized layer's weight less ``offset``, at
  the bits of the format, without gaps, the lowest bit first;
- ``LAYER.weight.FORMAT.scale`` and, unless it is 0, ``.zero_point``: scalars, one per output
  channel ``[O, 1, ...]``, or one per block of the flattened weight ``[B]``;
- ``table.0``, ``table.1``, ...: values by code, where they are not evenly spaced;
- under its name in the network's state dict, all that is not the weight of a quantized layer.

The entry ``dqnet`` of its metadata is JSON: the configuration (``config``, ``plan``,
``num_classes``, ``image_shape``), from which the network is built, and of each weight (``weights``)
``layer``, ``format``, ``shape``, ``offset``, ``block`` and ``table``. A weight is
(code − zero point) · scale, or table[code] · scale; the table of a small float is that of its name.
"""

from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dqnet.costs.size import StoredWeight, contents
from dqnet.errors import UserError
from dqnet.export.bits import pack_bits, unpack_bits
from dqnet.formats import Format, Minifloat
from dqnet.layers import QuantLayer
from dqnet.plan import Plan
from dqnet.quantizers import Codes, Quantizer
from dqnet.quantizers.minifloat import minifloat_table
from dqnet.runtime.files import write_atomically
from dqnet.training.build import build_model
from dqnet.training.checkpoint import config_of

#: of the layout; and the metadata's entry
VERSION, ENTRY = 1, "dqnet"


def save_packed(
    model: nn.Module, run: dict[str, Any], image_shape: tuple[int, int, int], path: Path
) -> None:
    """Writes a network.

    Args:
        model: with the weights that are packed.
        run: the content of a checkpoint, which says how the network is built.
        image_shape: ``(C, H, W)``.
        path: the file.

    Raises:
        UserError: if a quantizer of weights has no codes, or the file cannot be written.
    """
    stored = contents(model)
    tensors = dict(stored.tensors)
    tensors |= {f"table.{i}": table for i, table in enumerate(stored.tables)}
    weights = []
    for weight in stored.weights:
        name, codes = _name(weight.layer, weight.format), weight.codes
        offset = int(codes.codes.min())
        flat = (codes.codes.flatten() - offset).numpy()
        tensors[f"{name}.codes"] = torch.from_numpy(pack_bits(flat, weight.format.bits))
        tensors[f"{name}.scale"] = codes.scale
        if weight.has_zero_point:
            tensors[f"{name}.zero_point"] = codes.zero_point
        weights.append(_entry(weight, offset))
    description = {
        "version": VERSION,
        "config": run["config"],
        "plan": run.get("plan"),
        "num_classes": run["num_classes"],
        "image_shape": list(image_shape),
        "weights": weights,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write = partial(save_file, tensors, metadata={ENTRY: json.dumps(description)})
    write_atomically(path, write)


def _name(layer: str, own: Format) -> str:
    return f"{layer}.weight.{own}"


def _entry(weight: StoredWeight, offset: int) -> dict[str, Any]:
    return {
        "layer": weight.layer,
        "format": str(weight.format),
        "shape": list(weight.codes.codes.shape),
        "offset": offset,
        "block": weight.codes.block,
        "table": weight.table,
    }


def load_packed(path: str | Path) -> nn.Module:
    """The network of a file, on the CPU and in evaluation mode; its weights cannot be trained.

    Raises:
        UserError: if the file is missing, damaged or another one.
    """
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if ENTRY not in metadata:
        raise UserError(f"{path} is not a packed network: python -m dqnet.export.pack writes one")
    described = json.loads(metadata[ENTRY])
    if described["version"] != VERSION:
        raise UserError(f"{path} has layout {described['version']}, this program reads {VERSION}")
    config = config_of(described, path)
    plan = None if described["plan"] is None else Plan.from_json(described["plan"])
    model = build_model(
        config.model, config.quant, described["num_classes"], tuple(described["image_shape"]),
        load_weights=False, plan=plan,
    ).eval()  # fmt: skip
    weights: dict[str, list[Codes]] = {}
    for entry in described["weights"]:
        weights.setdefault(entry["layer"], []).append(_read(entry, tensors))
    own = model.state_dict()
    model.load_state_dict({k: tensors[k] if k in tensors else own[k] for k in own})
    for name, codes in weights.items():
        _set_weights(model.get_submodule(name), codes)
    return model


def _read(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Codes:
    own = Format.parse(entry["format"])
    name = _name(entry["layer"], own)
    count = torch.Size(entry["shape"]).numel()
    codes = unpack_bits(tensors[f"{name}.codes"].numpy(), own.bits, count) + entry["offset"]
    scale = tensors[f"{name}.scale"]
    zero_point = tensors.get(f"{name}.zero_point", torch.zeros_like(scale))
    table = None if entry["table"] is None else tensors[f"table.{entry['table']}"]
    if isinstance(own, Minifloat):
        table = minifloat_table(own).to(scale)
    codes = torch.from_numpy(codes).view(entry["shape"])
    return Codes(codes, scale, zero_point, table, entry["block"])


class _Unpacked(Quantizer):
    """Weights that were quantized when they were packed, whatever the float weight is."""

    def __init__(self, codes: list[Codes], dtype: torch.dtype) -> None:
        super().__init__((), signed=True)
        self._codes = codes
        for k, own in enumerate(codes):
            self.register_buffer(f"values_{k}", own.values().to(dtype))

    def all_formats(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for name, value in self.named_buffers() if name.startswith("values_"))

    def encode(self, x: Tensor, k: int) -> Codes:
        return self._codes[k].to(x.device)


def _set_weights(layer: QuantLayer, codes: list[Codes]) -> None:
    layer.weight_quantizer = _Unpacked(codes, layer.weight.dtype)
    layer.weight.requires_grad_(False).copy_(codes[-1].values())


def payload_bytes(path: Path) -> int:
    """How many bytes of a file are tensors: all but the header."""
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return path.stat().st_size - 8 - header
