"""Modules of a model in other modules' places."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def swap_modules(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> None:
    """Replaces modules under every name that they have, also in a module's own lists."""
    for parent in list(model.modules()):
        for held in vars(parent).values():  # the children are in one of them
            if isinstance(held, (list, dict)):
                for key, child in enumerate(held) if isinstance(held, list) else [*held.items()]:
                    if isinstance(child, nn.Module) and child in swaps:
                        held[key] = swaps[child]
