"""How a routing reaches the layers of a network without changing the network's code."""

from __future__ import annotations

from threading import Lock, get_ident

from torch import Tensor

from dqnet.errors import UserError
from dqnet.layers.groups import Groups


class Router:
    """The routing of the forward pass that is under way; every routed layer reads its column.

    One model owns one router and its layers hold a reference to it, so two models never share
    one. It is empty outside a forward pass, and a copy of it always is.

    Attributes:
        sampled: whether layers estimate their choice's gradient from one width that was not chosen
            (see :mod:`dqnet.layers.routed_conv`).
        names: the routed layers' module names, for errors.
    """

    def __init__(self, sampled: bool = False, names: tuple[str, ...] = ()) -> None:
        self.sampled = sampled
        self.names = names
        self._pass = Lock()
        self._thread: int | None = None
        self.close()

    def begin(self) -> None:
        """Starts a forward pass in this thread.

        Raises:
            UserError: if one is under way.
        """
        if not self._pass.acquire(blocking=False):
            raise UserError(
                "the model is running already, in another thread or inside itself: "
                "give each thread a copy.deepcopy of it"
            )
        self._thread = get_ident()

    def end(self) -> None:
        """Ends the forward pass that :meth:`begin` started."""
        self._thread = None
        self.close()
        self._pass.release()

    @property
    def running(self) -> bool:
        """Whether a forward pass is under way in this thread."""
        return self._thread == get_ident()

    def open(self, routing: Tensor) -> None:
        """Makes ``routing [N, L, K]`` the one in force until :meth:`close`."""
        self._columns = routing.unbind(1)
        self._groups = Groups.of_routing(routing)
        self._alternatives = [None] * len(self._groups)
        if self.sampled and routing.requires_grad:
            self._alternatives = list(Groups.of_alternatives(routing))

    def close(self) -> None:
        self._columns: tuple[Tensor, ...] = ()
        self._groups: list[Groups] = []
        self._alternatives: list[Groups | None] = []

    def column(self, index: int, images: int) -> tuple[Tensor, Groups, Groups | None]:
        """Of routed layer ``index``: its choice ``[N, K]``, groups and drawn alternatives.

        Raises:
            UserError: if there is no routing, or its N is not ``images``.
        """
        if not self._columns:
            raise UserError(
                "a routed layer ran before the controller did: the layer is called outside its "
                "model without a choice (gradient checkpointing does that), or the split point "
                "does not precede it"
            )
        routed = len(self._columns[index])
        if images != routed:
            name = self.names[index] if self.names else index
            raise UserError(
                f"routed layer {name!r} got a batch of {images}, the model one of {routed}: only "
                "whole images have a width each; keep the layer at one width (static=[...])"
            )
        return self._columns[index], self._groups[index], self._alternatives[index]

    def __reduce__(self) -> tuple[type[Router], tuple[bool, tuple[str, ...]]]:
        return Router, (self.sampled, self.names)
