"""Names in a converted network's state dict, and what wrappers and older versions called them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

#: a converted backbone's names begin with it
BACKBONE_PREFIX = "backbone."
#: what the names of parameters and buffers have in them that the float model does not have
ADDED = (".weight_quantizer.", ".input_quantizer.", ".affine.")
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
