"""What maps features of an image, or nothing, to scores of every routed layer's widths."""

from __future__ import annotations

from dqnet.config import ControllerConfig
from dqnet.controllers.base import Controller, check_config, one_hot_max
from dqnet.controllers.separate import SeparateController
from dqnet.controllers.shared import SharedController
from dqnet.controllers.table import TableController
from dqnet.errors import UserError, unknown_name

__all__ = [
    "Controller",
    "SeparateController",
    "SharedController",
    "TableController",
    "build_controller",
    "check_controller",
    "one_hot_max",
]

KINDS: dict[str, type[Controller]] = {
    "shared": SharedController,
    "separate": SeparateController,
    "table": TableController,
}


def build_controller(
    input_shape: tuple[int, ...], layers: int, widths: int, config: ControllerConfig | None = None
) -> Controller:
    """The controller of a kind.

    Args:
        input_shape: ``(C, H, W)`` of the features (or images) that it reads, or ``(T, C)`` of
            tokens.
        layers: L, the number of routed layers.
        widths: K, the number of widths of each.
        config: its form; see :class:`dqnet.config.ControllerConfig`.
    """
    config = config or ControllerConfig()
    check_controller(config)
    return KINDS[config.kind](input_shape, layers, widths, config)


def check_controller(config: ControllerConfig) -> None:
    """Raises UserError for another type, or a setting outside its range."""
    if not isinstance(config, ControllerConfig):
        raise UserError(
            f"controller {config!r} is not a dqnet.ControllerConfig, "
            "e.g. ControllerConfig(hidden=32)"
        )
    if config.kind not in KINDS:
        raise unknown_name("controller kind", config.kind, KINDS)
    check_config(config)
