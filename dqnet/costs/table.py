"""Measured latencies or energies: a price for every layer and precision, from a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from dqnet.costs.base import cost_model
from dqnet.costs.rows import checked_rows
from dqnet.errors import UserError
from dqnet.formats import Precision, ascending
from dqnet.plan import FULL, LayerPlan

COLUMNS = ("layer", "precision", "cost")


@cost_model("table")
@dataclass(frozen=True)
class Table:
    """A network's cost is the sum of its layers' costs, which holds for layers run in turn.

    Attributes:
        entries: rows of layer, precision (``4``, ``w4a8``, or ``full``) and cost of one image.
        unit: what a number is.

    Raises:
        UserError: for a precision that is none, two rows for the same, or a negative cost.
    """

    TABLE: ClassVar[str] = "entries"

    entries: Sequence[Sequence[Any]]
    unit: str = ""

    def __post_init__(self) -> None:
        rows = checked_rows(self.entries, COLUMNS)
        named = [(layer, FULL if own == FULL else str(Precision.parse(own)), cost)
                 for layer, own, cost in rows]  # fmt: skip
        object.__setattr__(self, "entries", tuple(named))

    def layer(self, layer: LayerPlan, precision: Precision | None) -> float:
        """What the table says.

        Raises:
            UserError: if it lacks the layer, or the layer at this precision.
        """
        own = FULL if precision is None else str(precision)
        if (layer.name, own) in self._costs:
            return self._costs[layer.name, own]
        has = [at for name, at in self._costs if name == layer.name]
        if not has:
            raise UserError(f"the table of costs lacks layer {layer.name!r}")
        raise UserError(
            f"the table of costs lacks layer {layer.name!r} at {own}; it has {', '.join(has)}"
        )

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that it has for every one of its layers that it has at a precision at all."""
        of_layers: dict[str, set[str]] = {}
        for name, own in self._costs:
            if own != FULL:
                of_layers.setdefault(name, set()).add(own)
        common = set.intersection(*of_layers.values()) if of_layers else set()
        return ascending(map(Precision.parse, sorted(common)))

    @cached_property
    def _costs(self) -> dict[tuple[str, str], float]:
        return {(layer, own): cost for layer, own, cost in self.entries}
