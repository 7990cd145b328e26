"""The terms of the loss at every step of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor


class LossHistory:
    """Kept where they were computed, so that no step waits for a GPU.

    Args:
        length: steps of the epoch.
        state: what :meth:`state_dict` returned after its first steps.
    """

    def __init__(self, length: int, state: dict[str, Tensor] | None = None) -> None:
        self.length = length
        self._count = 0
        self._names: tuple[str, ...] = ()
        self._values = torch.empty(0, length)
        if state:
            first = torch.stack(tuple(state.values()))
            self._start(tuple(state))
            self._count = first.shape[1]
            self._values[:, : self._count] = first

    def __len__(self) -> int:
        """How many steps are done."""
        return self._count

    def append(self, terms: dict[str, Tensor]) -> None:
        """Adds a step's terms, scalars; the same names at every step."""
        values = torch.stack([term.detach().double() for term in terms.values()])
        if not self._names:
            self._start(tuple(terms))
        # To begin with they are on the CPU, to which a checkpoint was read.
        self._values = self._values.to(values.device)
        self._values[:, self._count] = values
        self._count += 1

    def means(self) -> dict[str, float]:
        """Each term's mean over the steps done, at least one."""
        means = self._values[:, : self._count].mean(1).tolist()
        return dict(zip(self._names, means, strict=True))

    def is_finite(self) -> bool:
        """Whether all of them are; waits for the device."""
        return bool(self._values[:, : self._count].isfinite().all())

    def state_dict(self) -> dict[str, Tensor]:
        """float64 ``[steps done]`` by term; empty before the first step."""
        done = self._values[:, : self._count].cpu()
        return {name: row.clone() for name, row in zip(self._names, done, strict=True)}

    def _start(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._values = torch.zeros(len(names), self.length, dtype=torch.float64)
