"""Many tensors as one, and a description in few bytes: of a small network names take as much."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: the two tensors, uint8
CONTENT, DESCRIPTION = "content", "description"


def gathered(tensors: Mapping[str, Tensor], description: dict[str, Any]) -> dict[str, Tensor]:
    """All bytes of some tensors one after the other; and their index with a description.

    The second one is JSON, compressed by zlib. The index, its entry ``tensors``, has name, type and
    shape of each, in their order.
    """
    index = [
        [name, str(value.dtype).removeprefix("torch."), list(value.shape)]
        for name, value in tensors.items()
    ]
    content = torch.cat([value.reshape(-1).view(torch.uint8) for value in tensors.values()])
    written = json.dumps(description | {"tensors": index}, separators=(",", ":")).encode()
    described = torch.frombuffer(bytearray(zlib.compress(written, 9)), dtype=torch.uint8)
    return {CONTENT: content, DESCRIPTION: described}


def scattered(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`gathered` gathered: the description, and tensors by name.

    Raises:
        ValueError, LookupError, zlib.error: if these are others.
    """
    described = json.loads(zlib.decompress(tensors[DESCRIPTION].numpy().tobytes()))
    content, found, start = tensors[CONTENT], {}, 0
    for name, kind, shape in described.pop("tensors"):
        dtype = getattr(torch, kind)
        end = start + torch.Size(shape).numel() * dtype.itemsize
        # Copied, because a number has to begin at a multiple of its size.
        found[name] = content[start:end].clone().view(dtype).reshape(shape)
        start = end
    return described, found
