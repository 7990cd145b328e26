"""What a layer's weight is multiplied by, at some positions of some images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.layers import QuantLayer

#: how many patches of a layer are used: several for each of its weight's inputs
PATCHES = 2**14
#: images that are unfolded at once
_CHUNK = 8


def sampled_patches(layer: QuantLayer, x: Tensor, count: int = PATCHES) -> Tensor:
    """Patches of a layer's input, at the same random positions in every call of one shape.

    Args:
        layer: a convolution or a fully connected layer.
        x: its input, ``[N, C, H, W]`` or ``[N, ..., C]``.
        count: about how many patches.

    Returns:
        ``[G, P, D]``: G groups of channels, D elements, so that an output channel at a position is
        the inner product of a patch and the weight of that channel.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        chosen = torch.randperm(len(rows), generator=generator)[:count].to(x.device)
        return rows[chosen][None]
    geometry = layer.geometry
    per_image = math.ceil(count / len(x))
    kept = []
    for images in x.split(_CHUNK):
        images = geometry.padded(geometry.repeat(images), layer.weight)
        columns = F.unfold(
            images, layer.kernel_size, geometry.dilation, stride=geometry.stride
        )  # [n, C · kh · kw, positions]
        for column in columns:
            chosen = torch.randperm(column.shape[1], generator=generator)[:per_image]
            kept.append(column[:, chosen.to(x.device)].t())
    patches = torch.cat(kept)
    return patches.unflatten(1, (layer.groups, -1)).transpose(0, 1).contiguous()
