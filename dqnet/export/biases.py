"""Biases that an integer network holds exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dqnet.export.grids import grid_of
from dqnet.export.integer import in_integers
from dqnet.export.lower import affine_of, norms_of_layers, weight_and_bias
from dqnet.graph import Operation, operations
from dqnet.layers import QuantLayer
from dqnet.network import QuantizedModel
from dqnet.trace import evaluating


@torch.no_grad()
def round_biases(model: nn.Module) -> list[str]:
    """Rounds what layers and their norms add to what ``form=integer`` adds.

    An integer convolution adds its bias in whole units of (scale of the input) · (scale of the
    weight). Weights and scales a simulated network shares with its export; biases it has exactly,
    so that the two round some values to other codes. Afterwards the simulated network has the
    export's: the shift of the norm behind a layer, or the layer's own bias, is moved by up to half
    a unit.

    Args:
        model: a network, or a cascade, that can be exported so; changed in place.

    Returns:
        Names of layers that keep a bias between two units: of several precisions, with units of
        their own, and no shift for each.
    """
    kept = []
    for own in model.modules():
        if isinstance(own, QuantizedModel):
            kept += _round_in(own)
    return kept


def _round_in(model: QuantizedModel) -> list[str]:
    with model.unquantized():
        steps = operations(model.backbone, model.image_shape)
    folded, kept = norms_of_layers(steps), []
    with evaluating(model):
        for index, step in enumerate(steps.steps):
            if isinstance(step.module, QuantLayer):
                norm = steps.steps[folded[index]] if index in folded else None
                if not _round(step.module, step.name, norm):
                    kept.append(step.name)
    return kept


def _round(layer: QuantLayer, name: str, norm: Operation | None) -> bool:
    """Whether it could be done."""
    moves = [_move(layer, k, name, norm) for k in range(len(layer.precisions))]
    if layer.affine is not None:
        scale = np.ones_like(moves[0]) if norm is None else affine_of(norm.module)[0]
        for k, move in enumerate(moves):
            _add(layer.affine.shift[k], np.divide(move, scale, where=scale != 0, out=0 * move))
        return True
    if not any(move.any() for move in moves):
        return True
    shift = layer.bias if norm is None else norm.module.bias
    if len(moves) > 1 or shift is None:
        return False
    _add(shift, moves[0])
    return True


def _move(layer: QuantLayer, k: int, name: str, norm: Operation | None) -> np.ndarray:
    """From the bias at a precision to the nearest that int32 holds: float64 ``[O]``."""
    weight, bias = weight_and_bias(layer, k, name, norm)
    grid = grid_of(layer.input_quantizer, layer.input_format(k), f"the input of layer {name!r}")
    held, codes = in_integers(weight, bias, grid, name)
    return codes * (grid.scale * held.scale.astype(np.float32).astype(np.float64)) - bias


def _add(shift: Tensor, move: np.ndarray) -> None:
    shift.add_(torch.from_numpy(move).to(shift))
