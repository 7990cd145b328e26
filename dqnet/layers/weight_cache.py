"""Quantized weights that are kept from one evaluation pass to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class WeightCache:
    """What was computed from tensors, until one of them changes. It is not copied or pickled.

    On a CPU tensors are compared with copies of them, which sees every change. On a GPU that
    would wait for the device: there addresses and version counters are compared, and a write that
    skips the counter (``p.data.copy_()``, a fused optimizer) is not seen before :meth:`clear`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._kept: tuple[tuple[Any, ...], tuple[Tensor, ...]] | None = None

    def get(
        self, sources: tuple[Tensor, ...], compute: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What ``compute`` returns, or returned for the same values of ``sources``."""
        kept = self._kept
        if kept is None or not all(map(_unchanged, kept[0], sources)):
            kept = tuple(map(_state, sources)), compute()
            self._kept = kept
        return kept[1]

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def _state(p: Tensor) -> tuple[Tensor, int | None]:
    """A copy; on a GPU a view, which keeps the address in use, and the version."""
    if p.is_cpu:
        return p.detach().clone(), None
    return p.detach(), None if p.is_inference() else p._version


def _unchanged(state: tuple[Tensor, int | None], p: Tensor) -> bool:
    seen, version = state
    if seen.dtype != p.dtype or seen.is_cpu != p.is_cpu:
        return False
    if p.is_cpu:
        return torch.equal(seen, p)
    # Inference tensors count no versions.
    return not p.is_inference() and (seen.data_ptr(), version) == (p.data_ptr(), p._version)
