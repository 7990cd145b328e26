"""The controller of a dynamic network as a node of the integer graph: float32 numbers."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from dqnet.costs import relative_costs
from dqnet.errors import UserError
from dqnet.export.nodes import Controller
from dqnet.network import QuantizedModel

#: of a precision that a layer does not have: finite, and below every score
NEVER = -1e30


def controller_of(model: QuantizedModel) -> Controller:
    """What chooses the precisions, with the prices that a budget has set.

    Raises:
        UserError: for a controller that reads the image itself, or tokens.
    """
    own = model.controller
    if not isinstance(own.body, nn.Identity) or len(own.input_shape) != 3:
        raise UserError(
            f"a controller of kind {own.config.kind!r} has no integer form: train with "
            "quant.controller.kind=shared"
        )
    scale, shift = np.ones(own.fc1.in_features), np.zeros(own.fc1.in_features)
    if not isinstance(own.norm, nn.Identity):
        scale = _array(own.norm.weight) / np.sqrt(_array(own.norm.running_var) + own.norm.eps)
        shift = _array(own.norm.bias) - _array(own.norm.running_mean) * scale
    offset = np.zeros(own.shape)
    if model.prices is not None:
        offset -= _array(model.prices)
    if model.candidates is not None:
        offset[~model.candidates.cpu().numpy()] = NEVER
    first, second = ((_array(fc.weight), _array(fc.bias)) for fc in (own.fc1, own.fc2))
    spread, relu = own.config.pool == "mean_std", isinstance(own.act, nn.ReLU)
    prices = _array(relative_costs(model).nan_to_num(posinf=0))
    return Controller(spread, scale, shift, first, second, relu, offset, prices)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
