"""How a routing reaches the layers of a network without changing the network's code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import NamedTuple

from torch import Tensor

from dqnet.errors import UserError
from dqnet.layers.width_groups import WidthGroups


class Column(NamedTuple):
    """What one layer reads of a routing.

    Attributes:
        choice: one-hot ``[N, K]``; ``None`` where K is 1.
        groups: the images by the layer's own precisions.
        drawn_widths: groups by a precision that was not chosen, for the sampled gradient.
    """

    choice: Tensor | None
    groups: WidthGroups
    drawn_widths: WidthGroups | None = None


@dataclass
class ForwardPass:
    """The state of one pass of one model.

    Attributes:
        thread: whose pass it is.
        forced: the routing ``[N, L, K]`` to run with instead of the controller's.
        scores: the controller's, ``[N, L, K]``, once it has run.
        routing: the one in force, ``[N, L, K]``, from then on.
        columns: of every routed layer.
    """

    thread: int
    forced: Tensor | None = None
    scores: Tensor | None = None
    routing: Tensor | None = None
    columns: list[Column] = field(default_factory=list)


class Router:
    """The forward pass that is under way; every routed layer reads its column of the routing.

    One model owns one router and its layers hold a reference to it, so two models never share
    one. It is empty outside a forward pass, and a copy of it always is.

    Attributes:
        sampled: whether layers estimate their choice's gradient from one precision that was not
            chosen (see :mod:`dqnet.layers.sampled`).
        names: the routed layers' module names, for errors.
        candidates: which of the network's K precisions each layer has; ``None``: all.
        current: ``None`` outside a forward pass.
        bypassed: whether the backbone runs without its controller, its layers in full precision.
    """

    def __init__(
        self,
        sampled: bool = False,
        names: tuple[str, ...] = (),
        candidates: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:
        self.sampled = sampled
        self.names = names
        self.candidates = candidates
        self.current: ForwardPass | None = None
        self.bypassed = False
        self._lock = Lock()

    @contextmanager
    def forward_pass(self, forced: Tensor | None = None) -> Iterator[ForwardPass]:
        """A pass of this thread, for as long as it is open.

        Raises:
            UserError: if one is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise UserError(
                "the model is running already, in another thread or inside itself: "
                "give each thread a copy.deepcopy of it"
            )
        self.current = ForwardPass(get_ident(), forced)
        try:
            yield self.current
        finally:
            self.current = None
            self._lock.release()

    @property
    def running(self) -> bool:
        """Whether a forward pass is under way in this thread."""
        return self.current is not None and self.current.thread == get_ident()

    def open(self, routing: Tensor) -> None:
        """Makes ``routing [N, L, K]`` the one in force for the rest of the pass."""
        self.current.routing = routing
        choices, groups = routing.unbind(1), WidthGroups.of_routing(routing)
        drawn: Sequence[WidthGroups | None] = [None] * len(groups)
        if self.sampled and routing.requires_grad:
            drawn = WidthGroups.of_drawn_widths(routing, self.candidates)
        columns = [Column(*parts) for parts in zip(choices, groups, drawn, strict=True)]
        if self.candidates is not None:
            columns = [
                Column(
                    column.choice[:, own],
                    column.groups.among(own),
                    None if column.drawn_widths is None else column.drawn_widths.among(own),
                )
                for column, own in zip(columns, map(list, self.candidates), strict=True)
            ]
        self.current.columns = columns

    def open_alike(self, routing: Tensor) -> None:
        """:meth:`open` for a ``routing [N, L, K]`` that is the same for every image.

        Nothing is sorted, so no image is copied.
        """
        self.open(routing[:1])
        images = len(routing)
        self.current.routing = routing
        self.current.columns = [
            Column(
                column.choice.expand(images, -1),
                WidthGroups(tuple(images * count for count in column.groups.counts)),
            )
            for column in self.current.columns
        ]

    def column(self, index: int, images: int) -> Column:
        """What routed layer ``index`` reads.

        Raises:
            UserError: if there is no routing, or its N is not ``images``.
        """
        if self.current is None or not self.current.columns:
            raise UserError(
                "a routed layer ran before the controller did: the layer is called outside its "
                "model without a choice (gradient checkpointing does that), or the split point "
                "does not precede it, or was replaced"
            )
        column = self.current.columns[index]
        routed = len(column.choice)
        if images != routed:
            name = self.names[index] if self.names else index
            raise UserError(
                f"routed layer {name!r} got a batch of {images}, the model one of {routed}: only "
                "whole images have a width each; keep the layer at one width (static=[...])"
            )
        return column

    def __reduce__(self) -> tuple[type[Router], tuple[object, ...]]:
        return Router, (self.sampled, self.names, self.candidates)


def check_one_hot(choice: Tensor, shape: tuple[int, ...]) -> None:
    """Raises UserError unless ``choice`` has the shape and one 1 among zeros on its last axis."""
    if choice.shape != shape:
        raise UserError(f"the choice has shape {list(choice.shape)}, it must be {list(shape)}")
    values = choice.detach()
    if not bool((((values == 0) | (values == 1)).all(-1) & (values.sum(-1) == 1)).all()):
        raise UserError("the choice must be one-hot: one 1 per image and layer, else zeros")
