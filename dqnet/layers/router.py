"""How a routing reaches the layers of a network without changing the network's code."""

from __future__ import annotations

from torch import Tensor

from dqnet.errors import UserError
from dqnet.layers.groups import Groups


class Router:
    """The routing of the forward pass that is under way; every routed layer reads its column.

    One model owns one router and its layers hold a reference to it, so two models never share
    one. It is empty outside a forward pass.

    Attributes:
        sampled: whether layers estimate their choice's gradient from one width that was not chosen
            (see :mod:`dqnet.layers.routed_conv`).
    """

    def __init__(self, sampled: bool = False) -> None:
        self.sampled = sampled
        self.close()

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

    def column(self, index: int) -> tuple[Tensor, Groups, Groups | None]:
        """Of routed layer ``index``: its choice ``[N, K]``, groups and drawn alternatives."""
        if not self._columns:
            raise UserError(
                "a routed layer ran before the controller did: either the layer is called outside "
                "its model without a choice, or the split point does not precede it"
            )
        return self._columns[index], self._groups[index], self._alternatives[index]
