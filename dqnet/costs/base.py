"""What a cost model is, and the register of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Protocol

from dqnet.costs.rows import read_rows
from dqnet.errors import UserError, unknown_name
from dqnet.formats import Precision
from dqnet.plan import LayerPlan


class CostModel(Protocol):
    """The price of one image in one layer.

    A frozen dataclass: equal models share their tables of prices, and its fields are what a user
    sets. It may also have

    - ``unit``, what its numbers are called;
    - ``TABLE``, the name of the field whose rows a user keeps in a CSV file;
    - ``precisions``, a tuple, if it has prices for these alone.
    """

    def layer(self, layer: LayerPlan, precision: Precision | None) -> float:
        """What a layer costs at a precision; ``None``: in full precision."""


_MODELS: dict[str, type[CostModel]] = {}


def cost_model(name: str) -> Callable[[type[CostModel]], type[CostModel]]:
    """Gives a class its name; a file in this folder is found by it with no further registration."""

    def register(cls: type[CostModel]) -> type[CostModel]:
        _MODELS[name] = cls
        return cls

    return register


def find_cost(by: str | CostModel, options: Mapping[str, Any] | None = None) -> CostModel:
    """The cost model of a name; a cost model is returned as it is.

    Args:
        by: the name.
        options: its fields, where they are not the default.

    Raises:
        UserError: for a name that none has, or an option that it does not take.
    """
    if not isinstance(by, str):
        return by
    if by not in _MODELS:
        raise unknown_name("cost", by, _MODELS)
    cls, options = _MODELS[by], dict(options or {})
    known = {field.name: field for field in fields(cls)}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of cost {by!r}", name, known)
    for name, field in known.items():
        if _is_needed(field) and options.get(name) is None:
            raise UserError(f"cost {by!r} needs {name}: loss.cost_options.{name}=FILE")
    return cls(**options)


def read_options(by: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A user's options with the content of a file in the place of its name.

    Raises:
        UserError: if it cannot be read; :func:`find_cost` reads no file, because options may come
            with a stranger's checkpoint.
    """
    table = getattr(_MODELS.get(by), "TABLE", None)
    read = dict(options)
    if isinstance(read.get(table), str):
        read[table] = [list(row) for row in read_rows(read[table])]
    return read


def check_parameters(model: CostModel, at_least: Mapping[str, float]) -> None:
    """Raises UserError for a field that is not a number, or below what is given for it."""
    for name, least in at_least.items():
        value = getattr(model, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise UserError(f"{name} {value!r} of the cost must be a number from {least:g}")


def all_costs() -> dict[str, CostModel]:
    """Every model that needs nothing from the user, by name."""
    return {name: cls() for name, cls in _MODELS.items() if not any(map(_is_needed, fields(cls)))}


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
