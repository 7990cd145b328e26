"""A trained network with its weights as codes, in one file.

The file is one of safetensors, which many programs read. Its tensors are

- ``LAYER.weight.FORMAT.codes``, uint8: the codes of a quantized layer's weight less ``offset``, at
  the bits of the format, without gaps, the lowest bit first; or coded, see below;
- ``LAYER.weight.FORMAT.scale`` and, unless it is 0, ``.zero_point``: scalars, one per output
  channel ``[O, 1, ...]``, or one per block of the flattened weight ``[B]``;
- ``LAYER.weight.FORMAT.basis``, int8 ``[G, S, S]``, of a weight that is a product of two matrices:
  its codes, of the shape ``[G, M, S]``, are those of the first one;
- ``table.0``, ``table.1``, ...: values by code, where they are not evenly spaced;
- under its name in the network's state dict, all that is not the weight of a quantized layer.

The entry ``dqnet`` of its metadata is JSON: the configuration (``config``, ``plan``,
``num_classes``, ``image_shape``), from which the network is built, and of each weight (``weights``)
``layer``, ``format``, ``shape``, ``offset``, ``block`` and ``table``. A weight is
(code − zero point) · scale, or table[code] · scale; the table of a small float is that of its name.
With a basis it is table[code] · basis · scale, each filter the first of the numbers in its share of
the G matrices, and has the shape ``weight_shape``.

A coded weight has one more, ``coding``: its name, the bits of a gap, how many values are stored,
and how many bytes each of the four parts of ``codes`` has: table and content of the gaps, table and
content of the values (:mod:`dqnet.export.coding`). What is coded are the codes less that of zero,
modulo 2ᵇ, in the order of the flattened weight; the code of zero is the rounded zero point, or
where the table is 0, or else ``offset``.

If weights are coded the file has two tensors alone, and the entry ``dqnet`` only its layout: all
the others one after the other, and the description (:mod:`dqnet.export.compact`).

The entry ``sha256`` of the metadata is a hash of the description and of all tensors: safetensors
notices a file that is too short or too long, but no byte that is another one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dqnet.costs.size import contents
from dqnet.errors import UserError
from dqnet.export.coding import check_coding
from dqnet.export.compact import DESCRIPTION, gathered, scattered
from dqnet.export.weight_codes import read, written
from dqnet.layers import QuantLayer
from dqnet.plan import Plan
from dqnet.quantizers import Codes, Quantizer
from dqnet.runtime.files import write_atomically
from dqnet.training.build import build_model
from dqnet.training.checkpoint import config_of

#: of the layout, of which the first had neither codings nor a hash
VERSION, FIRST = 2, 1
#: the metadata's entries
ENTRY, HASH = "dqnet", "sha256"
_T = TypeVar("_T")


def save_packed(
    model: nn.Module,
    run: dict[str, Any],
    image_shape: tuple[int, int, int],
    path: Path,
    coding: str = "none",
    console: Console | None = None,
) -> None:
    """Writes a network.

    Args:
        model: with the weights that are packed.
        run: the content of a checkpoint, which says how the network is built.
        image_shape: ``(C, H, W)``.
        path: the file.
        coding: of the weights' codes, one of :data:`dqnet.export.coding.CODINGS`.
        console: where progress is shown; ``None``: nowhere.

    Raises:
        UserError: if a quantizer of weights has no codes, there is no such coding or its library
            is missing, or the file cannot be written.
    """
    check_coding(coding)
    stored = contents(model)
    tensors = dict(stored.tensors)
    tensors |= {f"table.{i}": table for i, table in enumerate(stored.tables)}
    weights = []
    for weight in _shown(stored.weights, "coding", console):
        entry, own = written(weight, coding)
        weights.append(entry)
        tensors |= own
    description = {
        "version": VERSION,
        "config": run["config"],
        "plan": run.get("plan"),
        "num_classes": run["num_classes"],
        "image_shape": list(image_shape),
        "weights": weights,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if coding != "none":
        tensors = gathered(tensors, description)
        description = {"version": VERSION}
    described = json.dumps(description)
    metadata = {ENTRY: described, HASH: _hash(described, tensors)}
    write_atomically(path, partial(save_file, tensors, metadata=metadata))


def _hash(described: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the description and of names, types, shapes and bytes."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_packed(path: str | Path, console: Console | None = None) -> nn.Module:
    """The network of a file, on the CPU and in evaluation mode; its weights cannot be trained.

    Args:
        path: the file.
        console: where progress is shown; ``None``: nowhere.

    Raises:
        UserError: if the file is missing, damaged or another one, or the library of its coding is
            missing.
    """
    path = Path(path)
    described, tensors = _content(path)
    config = config_of(described, path)
    weights: dict[str, list[Codes]] = {}
    try:
        for entry in _shown(described["weights"], "reading", console):
            codes = read(entry, tensors)
            codes.values()  # whose damage shows here at the latest
            weights.setdefault(entry["layer"], []).append(codes)
    except UserError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its weights cannot be read") from error
    plan = None if described["plan"] is None else Plan.from_json(described["plan"])
    model = build_model(
        config.model, config.quant, described["num_classes"], tuple(described["image_shape"]),
        load_weights=False, plan=plan,
    ).eval()  # fmt: skip
    own = model.state_dict()
    model.load_state_dict({k: tensors[k] if k in tensors else own[k] for k in own})
    for name, codes in weights.items():
        _set_weights(model.get_submodule(name), codes)
    return model


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors, which are as they were written."""
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
    try:
        described = json.loads(metadata[ENTRY])
        version = described["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: its description cannot be read") from error
    if version not in (FIRST, VERSION):
        raise UserError(f"{path} has layout {version}, this program reads up to {VERSION}")
    if version != FIRST and metadata.get(HASH) != _hash(metadata[ENTRY], tensors):
        raise UserError(f"{path} is damaged: it is not what was written")
    return scattered(tensors) if "weights" not in described else (described, tensors)


def _shown(weights: Sequence[_T], doing: str, console: Console | None) -> Iterable[_T]:
    hidden = console is None or not console.is_terminal
    return track(weights, doing, console=console, transient=True, disable=hidden)


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
    """How many bytes of a file are numbers of the network: without its description."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    described = header.get(DESCRIPTION, {"data_offsets": (0, 0)})["data_offsets"]
    return path.stat().st_size - 8 - length - (described[1] - described[0])
