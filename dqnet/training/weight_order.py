"""Weights of another implementation of the same network: the same tensors under other names.

Implementations that define a network's layers in the same order save their tensors in that order,
whatever they call them. Shapes alone do not prove it (two parallel branches may be alike), so a
user has to ask for it, and the accuracy of the float network shows whether it was right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dqnet.errors import UserError


def renamed_by_order(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    """The tensors of ``state`` under the names of ``own``; unchanged if the names are the same.

    Raises:
        UserError: if they are not the same tensors in the same order, as far as can be seen.
    """
    theirs, ours = _counted(state), _counted(own)
    if theirs.keys() == ours.keys():
        return dict(state)
    if (why := difference(state, own)) is not None:
        raise UserError(f"{path} cannot be loaded with model.checkpoint_by=order: {why}")
    return dict(zip(ours, theirs.values(), strict=True))


def difference(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Why the tensors cannot be the model's own in the same order, or ``None``.

    The same are: their number, and of each the shape, the last part of the name and which others
    belong to the same module. A name that both have stands at the same place.
    """
    theirs, ours = _counted(state), _counted(own)
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} tensors, the model {len(ours)}"
    modules: dict[str, str] = {}
    origins: dict[str, str] = {}
    for (their_name, value), (name, target) in zip(theirs.items(), ours.items(), strict=True):
        their_module, _, their_kind = their_name.rpartition(".")
        module, _, kind = name.rpartition(".")
        paired = (
            modules.setdefault(their_module, module) == module
            and origins.setdefault(module, their_module) == their_module
        )
        moved = their_name != name and (their_name in ours or name in theirs)
        if value.shape != target.shape or their_kind != kind or not paired or moved:
            return (
                f"{their_name!r} {list(value.shape)} stands where the model has "
                f"{name!r} {list(target.shape)}"
            )
    return None


def _counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the counters of batches, which old checkpoints lack and nothing here reads."""
    return {k: v for k, v in state.items() if k.rpartition(".")[2] != "num_batches_tracked"}
