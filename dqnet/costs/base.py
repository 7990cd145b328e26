"""What a cost model is, and the register of their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dqnet.errors import unknown_name
from dqnet.formats import Precision
from dqnet.plan import LayerPlan


class CostModel(Protocol):
    """The price of one image in one layer."""

    def layer(self, layer: LayerPlan, precision: Precision | None) -> float:
        """What a layer costs at a precision; ``None``: in full precision."""


_MODELS: dict[str, type[CostModel]] = {}


def cost_model(name: str) -> Callable[[type[CostModel]], type[CostModel]]:
    """Gives a class its name; a file in this folder is found by it with no further registration."""

    def register(cls: type[CostModel]) -> type[CostModel]:
        _MODELS[name] = cls
        return cls

    return register


def find_cost(by: str | CostModel) -> CostModel:
    """The cost model of a name; a cost model is returned as it is.

    Raises:
        UserError: for a name that none has.
    """
    if not isinstance(by, str):
        return by
    if by not in _MODELS:
        raise unknown_name("cost", by, _MODELS)
    return _MODELS[by]()
