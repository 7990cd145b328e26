"""What the controller adds to a network."""

from __future__ import annotations

from dataclasses import dataclass

from dqnet.network import QuantizedModel
from dqnet.state_dicts import added_by_conversion


@dataclass(frozen=True)
class ControllerCost:
    """What the controller adds for one image, and what the backbone has.

    Attributes:
        params, macs: of the controller; pooling counts one operation per element and statistic.
        backbone_params, backbone_macs: of the float model.
    """

    params: int
    macs: int
    backbone_params: int
    backbone_macs: int

    @property
    def params_ratio(self) -> float:
        return self.params / self.backbone_params

    @property
    def macs_ratio(self) -> float:
        return self.macs / self.backbone_macs


def controller_cost(model: QuantizedModel) -> ControllerCost:
    """Parameters and multiply-accumulates of the controller; zeros in a static network."""
    backbone = sum(
        p.numel() for name, p in model.backbone.named_parameters() if not added_by_conversion(name)
    )
    total = sum(layer.macs for layer in model.layers)
    controller = model.controller
    if controller is None:
        return ControllerCost(0, 0, backbone, total)
    params = sum(p.numel() for p in controller.parameters())
    return ControllerCost(params, controller.macs(), backbone, total)
