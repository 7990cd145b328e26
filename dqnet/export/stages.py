"""What each of Deep Compression's stages saves of a network: its bytes after every one.

Han, Mao and Dally 2016, *Deep Compression*, https://arxiv.org/abs/1510.00149, table 1: pruned
weights are kept sparse, then as indices of a codebook, then coded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dqnet.costs.size import Contents, StoredWeight, contents
from dqnet.export.coding import sparse_bits
from dqnet.export.packed import payload_bytes
from dqnet.export.weight_codes import codes_from_zero
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.network import QuantizedModel
from dqnet.state_dicts import added_by_conversion


@torch.no_grad()
def stages(model: nn.Module, path: Path) -> dict[str, int]:
    """Bytes of a network by stage, each with all that it needs to run.

    Args:
        model: a converted or a float network.
        path: its packed file.

    Returns:
        ``float``: float32, as it was before conversion; ``pruned``: its weights without their
        zeros, those of quantization among them, as float32 and gaps of the best number of bits;
        ``shared``: the same with codes in the place of float32, in every format that a layer has;
        ``coded``: the numbers in the packed file; ``file``: all of it, with its description.
    """
    network = model.backbone if isinstance(model, QuantizedModel) else model
    floats = {
        name: value.cpu()
        for name, value in network.state_dict().items()
        if not added_by_conversion(name) and value.is_floating_point()
    }
    stored = contents(model)
    prefix = "backbone." if isinstance(model, QuantizedModel) else ""
    quantized = {
        f"{weight.layer.removeprefix(prefix)}.weight": weight.codes.values()
        for weight in stored.weights
    }
    return {
        "float": sum(value.nbytes for value in floats.values()),
        "pruned": sum(map(_pruned_bytes, (floats | quantized).values())),
        "shared": _shared_bytes(stored),
        "coded": payload_bytes(path),
        "file": path.stat().st_size,
    }


def _pruned_bytes(value: Tensor) -> int:
    if value.dim() < 2:  # biases and norms
        return value.nbytes
    return -(-int(sparse_bits((value == 0).flatten().numpy(), FULL_PRECISION_BITS)) // 8)


def _shared_bytes(stored: Contents) -> int:
    saved = sum(own.code_bytes - _sparse_bytes(own) for own in stored.weights)
    return stored.nbytes - saved


def _sparse_bytes(weight: StoredWeight) -> int:
    codes, bits = weight.codes, weight.format.bits
    zeros = codes_from_zero(codes, int(codes.codes.min()), bits) == 0
    return -(-int(sparse_bits(zeros, bits)) // 8)
