"""Which state dicts a converted network loads: its own, older ones, the float network's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dqnet.errors import UserError
from dqnet.state_names import (
    BACKBONE_PREFIX,
    COMPILED,
    added_by_conversion,
    is_counter,
    rename_old_names,
    without_prefixes,
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
    own = {key.removeprefix(prefix).replace(COMPILED, ""): key for key in current}
    known = {*own, *(name.removeprefix(BACKBONE_PREFIX) for name in own)}
    theirs = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    if not theirs:
        return
    readings = without_prefixes(theirs)
    names = next((names for names in readings if known & {*names.values()}), None)
    if names is None:
        raise UserError(
            f"the state dict is not this model's: it has {theirs[0]!r}, the model {min(own)!r} and "
            "others; give the weights alone, of the same network"
        )
    is_float = not own.keys() & {*names.values()}
    for key, name in names.items():
        name = BACKBONE_PREFIX + name if is_float else name
        value = state_dict.pop(prefix + key)
        if not is_counter(key) or name in own:
            state_dict[own.get(name, prefix + name)] = value
    if not is_float:
        return
    for key, value in current.items():
        if added_by_conversion(key) or key.startswith(prefix + "controller."):
            fresh = key.endswith("_quantizer.initialized")
            state_dict.setdefault(key, torch.zeros_like(value) if fresh else value)
