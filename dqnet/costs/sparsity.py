"""Shares of zeros among weights and inputs, which guarded hardware skips.

ReLU makes zeros, and so does quantization: the fewer bits, the more values round to zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.costs.rows import Rows
from dqnet.errors import UserError
from dqnet.formats import distinct
from dqnet.layers import quantized_layers
from dqnet.network import QuantizedModel
from dqnet.trace import evaluating


@torch.no_grad()
def measure_sparsity(model: QuantizedModel, batches: Iterable[Tensor]) -> Rows:
    """Counts zeros in every quantized layer, at each of the formats that it may run at.

    Layers run in full precision meanwhile, so what is counted in one does not depend on the
    precision of those before it.

    Args:
        model: a converted model whose quantizers are set (:func:`dqnet.calibrate`).
        batches: images ``[N, C, H, W]`` of the training part, on the model's device; at least one.

    Returns:
        Rows of layer, ``weight`` or ``input``, format, and share of zeros: what
        :class:`dqnet.costs.energy.Energy` takes.

    Raises:
        UserError: if there are no images, or a quantizer waits for data.
    """
    layers = quantized_layers(model)
    rows: list[tuple[str, str, str, float]] = []
    inputs: dict[tuple[str, str], list[int]] = {}

    def count(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        formats, index = distinct(p.input for p in layer.precisions)
        for i, own in enumerate(formats):
            x = layer.quantized_input(args[0], index.index(i))
            zeros = inputs.setdefault((name, str(own)), [0, 0])
            zeros[0] += int((x == 0).sum())
            zeros[1] += x.numel()

    for name, layer in layers.items():
        if not (layer.weight_quantizer.ready and layer.input_quantizer.ready):
            raise UserError("quantizers have no ranges yet: run dqnet.calibrate first")
        formats, index = distinct(p.weight for p in layer.precisions)
        weights = layer.quantized_weights()
        for i, own in enumerate(formats):
            share = (weights[index.index(i)] == 0).double().mean().item()
            rows.append((name, "weight", str(own), share))
    handles = [m.register_forward_pre_hook(partial(count, name)) for name, m in layers.items()]
    try:
        with evaluating(model), model.unquantized():
            for images in batches:
                model.backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    if not inputs:
        raise UserError("sparsity is measured on images: give at least one batch")
    rows += [(name, "input", own, zeros / of) for (name, own), (zeros, of) in inputs.items()]
    return tuple(rows)
