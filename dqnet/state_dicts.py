"""State dicts of converted networks: their names, and which others they load."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from dqnet.errors import UserError

#: a converted backbone's names begin with it
BACKBONE_PREFIX = "backbone."
#: what the names of parameters and buffers have in them that the float model does not have
ADDED = (".weight_quantizer.", ".input_quantizer.", ".output_quantizer.", ".affine.")
#: torch.compile adds it to the names of what it compiled, which may be single layers
COMPILED = "_orig_mod."
#: the counter that ``torch.optim.swa_utils.AveragedModel`` adds to the weights
COUNTER = "n_averaged"
#: of the single quantizer that a layer once had: what each name is today
_OLD = {
    "weight_step": ("weight_quantizer.step",),
    "input_step": ("input_quantizer.step",),
    "alpha": ("input_quantizer.alpha",),
    "signed_form": ("input_quantizer.signed_form",),
    "initialized": ("weight_quantizer.initialized", "input_quantizer.initialized"),
}


def added_by_conversion(name: str) -> bool:
    """Whether a backbone's parameter or buffer is one that the float model does not have."""
    return any(part in name for part in ADDED)


def rename_old_names(state: dict[str, Any]) -> None:
    """Gives the entries of a state dict today's names, in place."""
    for key in [key for key in state if ".quantizer." in key]:
        layer, _, name = key.rpartition(".quantizer.")
        value = state.pop(key)
        for new in _OLD.get(name, (f"quantizer.{name}",)):
            state[f"{layer}.{new}"] = value
        if name == "signed_form":  # a weight is always signed
            state[f"{layer}.weight_quantizer.signed_form"] = value.new_ones(())


def is_counter(name: str) -> bool:
    """Whether a name is that of :data:`COUNTER`."""
    return name.rpartition(".")[2] == COUNTER


def without_prefixes(names: Collection[str]) -> Iterator[dict[str, str]]:
    """What names are without what wrappers have put before them; at first only compilation's.

    Prefixes that all names share are dropped one after the other, such as ``module.``
    (DistributedDataParallel, AveragedModel), ``model.`` or ``net.`` (Lightning).

    Yields:
        From each name to what is left of it.
    """
    left = {name: name.replace(COMPILED, "") for name in names}
    while True:
        yield left
        own = [name for name in left.values() if not is_counter(name)]
        if len({name.partition(".")[0] for name in own}) != 1 or not all("." in n for n in own):
            return
        left = {key: name.partition(".")[2] or name for key, name in left.items()}


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
