"""Which images of a batch run at which width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.processes import own_rows


@dataclass(frozen=True)
class WidthGroups:
    """A batch sorted by width, so that the images of one width lie side by side.

    Attributes:
        counts: how many images chose each of the K widths; known on the host, so that walking
            over the groups never waits for a device.
        order: int64 ``[N]``: the images' positions, those of the first width first; ``None``
            where there is only one width.
        inverse: int64 ``[N]``: undoes ``order``.
    """

    counts: tuple[int, ...]
    order: Tensor | None = None
    inverse: Tensor | None = None

    @classmethod
    def of(cls, choice: Tensor) -> WidthGroups:
        """The groups of one layer's one-hot choice ``[N, K]``."""
        return cls.of_routing(choice.unsqueeze(1))[0]

    @classmethod
    def of_routing(cls, routing: Tensor) -> list[WidthGroups]:
        """The groups of every layer of a routing ``[N, L, K]``, with one transfer to the host."""
        routing = routing.detach()
        chosen = routing.argmax(-1).t().contiguous()
        orders = chosen.argsort(dim=1, stable=True)
        inverses = orders.argsort(dim=1)
        counts = F.one_hot(chosen, routing.shape[-1]).sum(1).tolist()
        return [
            cls(tuple(count), order, inverse)
            for count, order, inverse in zip(counts, orders, inverses, strict=True)
        ]

    @classmethod
    def of_drawn_widths(
        cls, routing: Tensor, candidates: Sequence[Sequence[int]] | None = None
    ) -> list[WidthGroups]:
        """For every layer, groups by one width that each image did not choose, drawn uniformly.

        Args:
            routing: ``[N, L, K]``.
            candidates: which of the K widths each layer has; ``None``: all.
        """
        routing = routing.detach()
        chosen, widths = routing.argmax(-1), routing.shape[-1]
        if candidates is None:
            steps = own_rows(
                lambda n: torch.randint(1, widths, (n, chosen.shape[1]), device=chosen.device),
                len(chosen),
            )
            drawn = (chosen + steps) % widths
        else:
            drawn = torch.stack(
                [
                    _other(column, torch.tensor(own, device=chosen.device))
                    for column, own in zip(chosen.unbind(1), candidates, strict=True)
                ],
                1,
            )
        return cls.of_routing(torch.zeros_like(routing).scatter_(-1, drawn.unsqueeze(-1), 1.0))

    def among(self, candidates: Sequence[int]) -> WidthGroups:
        """The same groups, of these widths alone; no image chose another one."""
        return replace(self, counts=tuple(self.counts[k] for k in candidates))

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each width's images start and end in the sorted batch; equal if it has none."""
        ends = [sum(self.counts[: k + 1]) for k in range(len(self.counts))]
        return list(zip([0, *ends], ends, strict=False))

    def sort(self, x: Tensor) -> Tensor:
        """``[N, ...]`` with the images of one width side by side; itself if all chose the same."""
        return x if self._sorted else _take(x, self.order)

    def unsort(self, parts: list[Tensor]) -> Tensor:
        """The parts of a sorted ``[N, ...]``, put together in the batch's own order."""
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if self._sorted else _take(whole, self.inverse)

    @property
    def _sorted(self) -> bool:
        return sum(count > 0 for count in self.counts) <= 1


def _other(chosen: Tensor, candidates: Tensor) -> Tensor:
    """One of ``candidates``, ascending, other than each of ``chosen [N]``."""
    steps = own_rows(
        lambda n: torch.randint(1, len(candidates), (n,), device=chosen.device), len(chosen)
    )
    return candidates[
        (torch.searchsorted(candidates, chosen.contiguous()) + steps) % len(candidates)
    ]


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Images at ``positions``, in the memory format of ``x``."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(0, positions)
    # index_select copies whole rows of contiguous tensors, and single elements of any other.
    taken = torch.empty_like(x)
    torch.index_select(x.permute(0, 2, 3, 1), 0, positions, out=taken.permute(0, 2, 3, 1))
    return taken
