"""What a search is given, what it returns, and the register of their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dqnet.costs import CostModel, cost_table
from dqnet.costs.static import static_cost
from dqnet.errors import UserError, unknown_name
from dqnet.network import QuantizedModel
from dqnet.plan import Plan

#: images and labels
Batch = tuple[Tensor, Tensor]


class Journal:
    """How far a search is: here nothing is kept and nothing shown; a run's subclass does both.

    Attributes:
        folder: where a search may keep files of its own; ``None``: nowhere.
    """

    folder: Path | None = None

    def read(self) -> dict[str, Any]:
        """What was written last by the same search; empty before."""
        return {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Keeps a state of plain values, in the place of the one before."""

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """Shows a bar; what is yielded moves it one step on."""
        yield lambda: None


@dataclass(frozen=True, eq=False)
class Problem:
    """A network whose L routed layers are each to get one of their precisions.

    Attributes:
        model: in evaluation, its quantizers set.
        batches: held-out images ``[N, C, H, W]`` and labels ``[N]``, on the model's device.
        cost: what a plan's price is in.
        target: what it may cost; ``None``: anything.
        journal: how far the search is.
    """

    model: QuantizedModel
    batches: Sequence[Batch]
    cost: CostModel
    target: float | None = None
    journal: Journal = field(default_factory=Journal)

    @cached_property
    def prices(self) -> Tensor:
        """What each layer costs at each of K precisions: float64 ``[L, K]``, infinite: it has not
        that one."""
        return cost_table(self.model, self.cost)

    @cached_property
    def candidates(self) -> list[list[int]]:
        """Indices of each layer's own precisions among the K."""
        return [row.isfinite().nonzero().flatten().tolist() for row in self.prices]

    @property
    def to_spend(self) -> float:
        """What the routed layers may cost together."""
        return self.target - static_cost(self.model.layers, self.cost)

    def price(self, chosen: Sequence[int]) -> float:
        """What the routed layers cost together."""
        return self.prices.gather(1, torch.tensor(chosen)[:, None]).sum().item()

    def plan(self, chosen: Sequence[int]) -> Plan:
        """The network's plan with one precision for every layer."""
        own = iter(chosen)
        layers = (
            replace(layer, role="static", precisions=(self.model.precisions[next(own)],))
            if layer.role == "routed"
            else layer
            for layer in self.model.layers
        )
        return replace(self.model.plan, layers=tuple(layers))


class Search(Protocol):
    """One way to choose; a frozen dataclass whose fields are what a user sets.

    Attributes:
        meets_target: whether the target is what it keeps to.
        reads_images: whether it needs any.
        chooses_apart: whether it chooses a layer's input and weight one after the other, for which
            a layer needs all pairs of its formats.
    """

    meets_target: ClassVar[bool]
    reads_images: ClassVar[bool]
    chooses_apart: ClassVar[bool]

    def __call__(self, problem: Problem) -> list[int]:
        """For each of L layers the index of its precision among the K."""


_SEARCHES: dict[str, type[Search]] = {}


def search(name: str) -> Callable[[type[Search]], type[Search]]:
    """Gives a class its name; a file in this folder is found by it with no further registration."""

    def register(cls: type[Search]) -> type[Search]:
        _SEARCHES[name] = cls
        return cls

    return register


def find_search(by: str, options: Mapping[str, Any] | None = None) -> Search:
    """The search of a name.

    Raises:
        UserError: for a name that none has, or an option that it does not take.
    """
    if by not in _SEARCHES:
        raise unknown_name("search", by, _SEARCHES)
    valid = [own.name for own in fields(_SEARCHES[by])]
    for name in options or {}:
        if name not in valid:
            raise unknown_name(f"option of search {by!r}", name, valid)
    return _SEARCHES[by](**(options or {}))


def check_count(owner: object, name: str, least: int = 1) -> None:
    """Raises UserError unless an option is a whole number of at least ``least``."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} {value!r} of the search must be a whole number from {least}")
