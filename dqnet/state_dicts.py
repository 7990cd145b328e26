"""Which state dicts a converted network loads: its own, older ones, the float network's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from dqnet.errors import UserError
from dqnet.state_names import (
    BACKBONE_PREFIX,
    COMPILED,
    COUNTER,
    added_by_conversion,
    rename_old_names,
)


def accept_other_state_dicts(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any
) -> None:
    """Lets ``load_state_dict`` take older names, wrappers' names, and the float model's state dict.

    What the float model lacks (the controller, quantizer parameters) keeps its values, except that
    quantizers initialise themselves again from the new weights. To be registered as a pre-hook.

    Raises:
        UserError: if nothing in the state dict has a name that the model knows, strict or not.
    """
    rename_old_names(state_dict)
    current = model.state_dict(prefix=prefix)
    own = {_plain(key, prefix): key for key in current}
    theirs = {key: _plain(key, prefix) for key in state_dict if key.startswith(prefix)}
    if not theirs:
        return
    theirs = _without_prefixes(theirs, own)
    is_float = not any(name in own for name in theirs.values())
    for key, name in theirs.items():
        name = BACKBONE_PREFIX + name if is_float else name
        value = state_dict.pop(key)
        if not _is_counter(key) or name in own:
            state_dict[own.get(name, prefix + name)] = value
    if not is_float:
        return
    for key, value in current.items():
        if added_by_conversion(key) or key.startswith(prefix + "controller."):
            fresh = key.endswith("_quantizer.initialized")
            state_dict.setdefault(key, torch.zeros_like(value) if fresh else value)


def _plain(key: str, prefix: str) -> str:
    return key.removeprefix(prefix).replace(COMPILED, "")


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _without_prefixes(theirs: dict[str, str], own: Collection[str]) -> dict[str, str]:
    """Drops what all names begin with, part by part, until some are the model's.

    Args:
        theirs: from the keys of a state dict to names.
        own: names in the converted model; those without ``backbone.`` are the float model's.

    Raises:
        UserError: if none ever is.
    """
    known = {*own, *(name.removeprefix(BACKBONE_PREFIX) for name in own)}
    names = dict(theirs)
    while not any(name in known for name in names.values()):
        firsts = {name.partition(".")[0] for name in names.values() if not _is_counter(name)}
        if len(firsts) != 1 or firsts & set(names.values()):
            raise UserError(
                f"the state dict is not this model's: it has {next(iter(theirs))!r}, the model "
                f"{min(own)!r} and others; give the weights alone, of the same network"
            )
        names = {key: name.partition(".")[2] or name for key, name in names.items()}
    return names
